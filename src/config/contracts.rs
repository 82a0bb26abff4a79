//! The contracts of an outbox: read and compiled with the config, so that what is wrong with them is told
//! at the start, by file and place.

use std::sync::Arc;

use super::keys;
use super::problem::Problem;
use super::settings::{Purpose, Settings};
use super::written::Origin;
use crate::cloudevents::CloudEvents;
use crate::connect::Format;
use crate::contract::{Contracts, Files, Rules};
use crate::record::Style;

impl Settings {
    /// The contracts of outbox `index`, where it has some and `purpose` is to publish.
    ///
    /// # Errors
    /// Everything that is wrong with them, at the place that names the folder.
    pub(super) fn contracts(
        &self,
        index: usize,
        purpose: Purpose,
    ) -> Result<Option<Arc<Contracts>>, Vec<Problem>> {
        // others may run where the folder is not
        if purpose != Purpose::Run {
            return Ok(None);
        }
        let one = |problem| vec![problem];
        let folder = self.read_of(index, &keys::CONTRACTS).map_err(one)?;
        let Some(folder) = folder else {
            return Ok(None);
        };
        let header = self.read_of(index, &keys::VERSION_HEADER).map_err(one)?;
        let (_, _, encoding) = self.wire(index).map_err(one)?;
        let named = self.written(index, &keys::VERSION_HEADER.spec);
        let plain = match &encoding.style {
            Style::Connect(connect) => connect.formats().headers == Format::Plain,
            Style::CloudEvents(_) => !CloudEvents::reserves(&header),
            Style::Plain => true,
        };
        let taken = encoding.headers.iter().any(|(_, name)| *name == header);
        let fault = match (plain, taken) {
            (false, _) => Some(format!(
                "`outbox.contracts`: its header `{header}` does not go together with the headers of \
                 `outbox.formats` or `outbox.cloudevents`"
            )),
            (_, true) => Some(format!(
                "`outbox.version_header`: there is a header `{header}` already"
            )),
            (true, false) => None,
        };
        if let Some(text) = fault {
            let origin = named.map(|written| written.origin);
            let origin = origin.filter(|origin| *origin != Origin::Default);
            let origin = origin.unwrap_or_else(|| self.outboxes[index].clone());
            return Err(vec![Problem::at(&origin, text)]);
        }
        let rules = Rules {
            expected: self.read_of(index, &keys::CONTRACT_VERSION).map_err(one)?,
            on_violation: self.read_of(index, &keys::ON_VIOLATION).map_err(one)?,
            on_violation_by_event_type: self
                .read_of(index, &keys::ON_VIOLATION_BY_EVENT_TYPE)
                .map_err(one)?,
            on_missing: self
                .read_of(index, &keys::ON_MISSING_CONTRACT)
                .map_err(one)?,
            header,
        };
        let origin = self.written(index, &keys::CONTRACTS.spec);
        let origin = origin.map_or_else(|| self.outboxes[index].clone(), |written| written.origin);
        let read = Files::read(&folder).and_then(|files| match files.is_empty() {
            true => Err(vec![crate::contract::Fault {
                file: String::new(),
                place: String::new(),
                text: format!("the folder {} has no contract in it", folder.display()),
            }]),
            false => Contracts::compile(&files, rules),
        });
        let problem = |fault| Problem::at(&origin, format!("`outbox.contracts`: {fault}"));
        match read {
            Ok(contracts) => Ok(Some(Arc::new(contracts))),
            Err(faults) => Err(faults.iter().map(problem).collect()),
        }
    }
}
