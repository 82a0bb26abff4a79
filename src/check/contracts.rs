//! Pending rows held against their contracts. Pure.

use super::line::Line;
use crate::config::Outbox;
use crate::contract::Contracts;
use crate::event::Event;

/// Reasons that are shown: rows of a kind have the same.
const SHOWN_MAX: usize = 3;

/// What the contracts of `outbox` say of `rows`, some of those that are pending.
pub(super) fn contracts(outbox: &Outbox, contracts: &Contracts, rows: &[Event]) -> Line {
    let (mut bad, mut parked, mut reasons) = (0_usize, 0_usize, Vec::new());
    for event in rows {
        // what cannot be encoded is told elsewhere
        let Ok(record) = outbox.encoding.record(event, "".into()) else {
            continue;
        };
        let admitted = contracts.admit(event, record);
        let reason = match admitted {
            Ok(admitted) => admitted.warning,
            Err(reason) => {
                parked += 1;
                Some(reason)
            }
        };
        if let Some(reason) = reason {
            bad += 1;
            let told = format!("{}: {}", event.event_type, reason.text);
            if !reasons.contains(&told) && reasons.len() < SHOWN_MAX {
                reasons.push(told);
            }
        }
    }
    let (types, versions) = contracts.count();
    let looked = rows.len();
    if bad == 0 {
        return Line::ok(
            "contracts",
            format!(
                "{types} event types in {versions} versions; the {looked} pending rows looked at fit"
            ),
        );
    }
    let reasons = reasons.join("; ");
    let why = format!("{bad} of {looked} pending rows are not as their contracts say: {reasons}");
    let line = match parked {
        0 => Line::warn(
            "contracts",
            format!("{why}. They are published all the same"),
        ),
        _ => Line::fail(
            "contracts",
            format!("{why}. {parked} of them will be parked"),
        ),
    };
    line.words(
        "mend the service, publish a contract that allows what it writes, or set on_violation = \"warn\" \
         meanwhile",
    )
}
