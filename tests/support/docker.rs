//! Servers in containers, through testcontainers.

use std::collections::HashMap;
use std::time::Duration;

use testcontainers::bollard::Docker;
use testcontainers::bollard::models::PortBinding;
use testcontainers::bollard::query_parameters::KillContainerOptionsBuilder;
use testcontainers::core::IntoContainerPort;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::time::sleep;

use super::janitor::{LABEL, RUN_ID};
use super::local;
use super::servers::{Kind, given};

/// A server's container. Only removing it frees its port on the host.
pub(crate) struct Container {
    pub(crate) port: u16,
    container: ContainerAsync<GenericImage>,
    docker: Docker,
    /// What makes the server shut down properly without waiting for its clients.
    stop_signal: &'static str,
}

/// Starts a server on `port` of the host's loopback, without waiting until it answers.
pub(crate) async fn launch(kind: Kind, port: u16) -> Result<(Container, String), String> {
    let (name, inner, request) = match kind {
        Kind::Postgres => {
            let name = given("TEST_PG_IMAGE").unwrap_or_else(|| "postgres:17".to_owned());
            let request = image(&name)
                .with_env_var("POSTGRES_PASSWORD", "postgres")
                .with_cmd(
                    local::POSTGRES_SETTINGS
                        .iter()
                        .flat_map(|setting| ["-c", setting]),
                );
            (name, 5432, request)
        }
        Kind::Kafka => {
            let name = given("TEST_KAFKA_IMAGE").unwrap_or_else(|| "apache/kafka:4.1.1".to_owned());
            let mut request = image(&name).with_env_var("KAFKA_HEAP_OPTS", local::KAFKA_HEAP);
            // The image's controller and its log are its own; the broker is told its address as
            // seen from the host.
            for (setting, value) in local::kafka_settings(9092, port, 9093) {
                let variable = setting.to_uppercase().replace('.', "_");
                request = request.with_env_var(format!("KAFKA_{variable}"), value);
            }
            (name, 9092, request)
        }
    };
    let binding = HashMap::from([(
        format!("{inner}/tcp"),
        Some(vec![PortBinding {
            host_ip: Some("127.0.0.1".to_owned()),
            host_port: Some(port.to_string()),
        }]),
    )]);
    let request = request
        .with_mapped_port(port, inner.tcp())
        // testcontainers would publish the port on every address.
        .with_host_config_modifier(move |host| host.port_bindings = Some(binding.clone()))
        .with_label(LABEL, &*RUN_ID)
        .with_startup_timeout(Duration::from_secs(120));
    let container = request.start().await.map_err(|error| error.to_string())?;
    let docker = docker_client_instance().await;
    let container = Container {
        port,
        container,
        docker: docker.map_err(|error| error.to_string())?,
        stop_signal: match kind {
            Kind::Postgres => "SIGINT",
            Kind::Kafka => "SIGTERM",
        },
    };
    Ok((container, format!("container of {name}")))
}

/// `name:tag`; the name may hold a registry with a port.
fn image(name: &str) -> ContainerRequest<GenericImage> {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => GenericImage::new(name, tag),
        _ => GenericImage::new(name, "latest"),
    }
    .into()
}

impl Container {
    pub(crate) async fn stop(&self) {
        self.signal(self.stop_signal).await;
    }

    pub(crate) async fn kill(&self) {
        self.signal("SIGKILL").await;
    }

    pub(crate) async fn start(&self) {
        self.container
            .start()
            .await
            .expect("a container starts again");
    }

    pub(crate) async fn pause(&self) {
        // the kernel's freezer gives up on a busy machine now and then ("unable to freeze")
        for _ in 0..5 {
            match self.container.pause().await {
                Ok(()) => return,
                Err(error) => super::servers::say(&format!("{error}; trying again")),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        panic!("a running container can be paused");
    }

    pub(crate) async fn unpause(&self) {
        self.container
            .unpause()
            .await
            .expect("a paused container goes on");
    }

    pub(crate) async fn remove(self) {
        // The janitor has another chance.
        self.container.rm().await.ok();
    }

    pub(crate) async fn is_running(&self) -> bool {
        self.container.is_running().await.unwrap_or(false)
    }

    /// The end of what the server printed.
    pub(crate) async fn log(&self) -> String {
        let mut lines = Vec::new();
        for read in [
            self.container.stdout_to_vec().await,
            self.container.stderr_to_vec().await,
        ] {
            lines.extend(read.unwrap_or_default());
        }
        local::end_of(&String::from_utf8_lossy(&lines))
    }

    /// Ends the server by a signal and waits until it is gone.
    async fn signal(&self, signal: &str) {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        self.docker
            .kill_container(self.container.id(), Some(options))
            .await
            .expect("a running container can be signalled");
        while self.is_running().await {
            sleep(Duration::from_millis(20)).await;
        }
    }
}
