//! The `outbox-relay` daemon and its tools.

use std::process::ExitCode;
use std::time::Duration;

use outbox_relay::cli::{self, Exit, Task};
use outbox_relay::config::Environment;
use outbox_relay::ops::log;
use outbox_relay::ops::traces::Traces;

/// Command line, config, logs, runtime, traces, command, exit code.
fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let ended = std::panic::catch_unwind(|| {
        let command = cli::parse(std::env::args_os())?;
        let environment = Environment::of_process();
        let task = command.configure(&environment)?;
        if let Some(config) = task.log() {
            log::start(config).map_err(|why| cli::fail(Exit::Config, &why))?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|why| cli::fail(Exit::Unavailable, &why.to_string()))?;
        let traces = matches!(task, Task::Run(..)).then(|| Traces::start(&environment));
        let exit = runtime.block_on(task.run());
        traces.into_iter().for_each(Traces::end);
        // What is still there was left on purpose, or is a call into librdkafka that hangs on a slow
        // name server: nothing of ours is left to finish.
        runtime.shutdown_timeout(Duration::from_millis(500));
        Ok(exit)
    });
    // The panic has told its story; it is a bug like no other ending is.
    let exit: Exit = ended.map_or(Exit::Bug, |ended| ended.unwrap_or_else(|exit| exit));
    exit.into()
}
