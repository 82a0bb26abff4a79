//! The checker: holds what the customers were told, the money, the stock and the read model against each other.
//! Pure, so that each rule can be read by itself.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use crate::books::{Books, Deed, Holding, Order};
use crate::customers::{Look, Placed};

/// Everything that is wrong, in sentences; nothing, if all of it agrees. What is only not finished yet counts too:
/// ask again until the budget is used up.
pub(crate) fn faults(placed: &[Placed], books: &Books) -> Vec<String> {
    let mut faults = Vec::new();
    customers(placed, books, &mut faults);
    orders(books, &mut faults);
    holdings(
        "the stock of",
        &books.stock,
        &books.movements,
        "sold",
        &mut faults,
    );
    holdings(
        "the wallet of",
        &books.wallets,
        &books.payments,
        "taken",
        &mut faults,
    );
    read_model(books, &mut faults);
    for (count, what) in [
        (books.pending, "events were not published"),
        (books.parked, "events are parked"),
        (books.gaps, "gaps in the versions of an order"),
        (books.late, "events came after later ones of their order"),
    ] {
        if count != 0 {
            faults.push(format!("{count} {what}"));
        }
    }
    faults
}

/// What a customer was told is so, and who looked saw the order.
fn customers(placed: &[Placed], books: &Books, faults: &mut Vec<String>) {
    for Placed {
        id,
        wish,
        accepted,
        look,
    } in placed
    {
        match books.orders.get(id) {
            None if *accepted => faults.push(format!("order {id} was accepted and is not there")),
            Some(order)
                if (&order.customer, &order.sku, order.quantity)
                    != (&wish.customer, &wish.sku, wish.quantity) =>
            {
                faults.push(format!("order {id} is not what was ordered"));
            }
            _ => {}
        }
        if let Look::Wrong(seen) = look {
            faults.push(format!("who had ordered {id} did not see it: {seen}"));
        }
    }
    let asked: HashMap<_, _> = placed.iter().map(|one| (one.id, ())).collect();
    for id in books.orders.keys().filter(|id| !asked.contains_key(id)) {
        faults.push(format!("nobody ordered {id}"));
    }
}

/// Each order has come to an end, and what was done for it is what belongs to that end: each thing once.
fn orders(books: &Books, faults: &mut Vec<String>) {
    let (movements, payments) = (by_order(&books.movements), by_order(&books.payments));
    for order in books.orders.values() {
        let Some((moved, paid)) = belongs(order) else {
            faults.push(format!(
                "order {} has come to no end: {}",
                order.id, order.status
            ));
            continue;
        };
        if order.version != 2 {
            faults.push(format!(
                "order {} changed {} times",
                order.id,
                order.version - 1
            ));
        }
        let pieces = i64::from(order.quantity);
        let done = movements.get(&order.id).map_or(&[][..], Vec::as_slice);
        hold(order, "stock", moved, &order.sku, pieces, done, faults);
        let done = payments.get(&order.id).map_or(&[][..], Vec::as_slice);
        hold(
            order,
            "money",
            paid,
            &order.customer,
            order.cents,
            done,
            faults,
        );
    }
    for id in movements.keys().chain(payments.keys()) {
        if !books.orders.contains_key(id) {
            faults.push(format!("something was done for {id}, which is no order"));
        }
    }
}

/// What was done with stock, and with money, for an order that ended so.
fn belongs(order: &Order) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match (order.status.as_str(), order.reason.as_deref()) {
        ("confirmed", None) => (&["reserved", "sold"], &["taken"]),
        ("cancelled", Some("payment refused")) => (&["released", "reserved"], &["refused"]),
        ("cancelled", Some("out of stock")) => (&["refused"], &[]),
        _ => return None,
    })
}

fn hold(
    order: &Order,
    what: &str,
    expected: &[&str],
    of: &str,
    amount: i64,
    done: &[&Deed],
    faults: &mut Vec<String>,
) {
    let mut kinds: Vec<_> = done.iter().map(|deed| deed.kind.as_str()).collect();
    kinds.sort_unstable();
    if kinds != expected {
        let Order { id, status, .. } = order;
        faults.push(format!(
            "{what} of the {status} order {id}: {kinds:?}, not {expected:?}"
        ));
    }
    if done
        .iter()
        .any(|deed| deed.of != of || deed.amount != amount)
    {
        faults.push(format!("{what} of order {}: {done:?}", order.id));
    }
}

/// What there was is there still, or went where the books say.
fn holdings(
    what: &str,
    holdings: &[Holding],
    deeds: &[Deed],
    gone: &str,
    faults: &mut Vec<String>,
) {
    for Holding {
        name,
        at_first,
        now,
        reserved,
    } in holdings
    {
        let went: i64 = deeds
            .iter()
            .filter(|deed| deed.kind == gone && deed.of == *name)
            .map(|deed| deed.amount)
            .sum();
        if now + went != *at_first || *reserved != 0 {
            faults.push(format!(
                "{what} {name}: {at_first} at first, {now} now, {went} {gone}, {reserved} reserved"
            ));
        }
    }
}

/// The read model is what it would be if it were made anew of the services' own tables.
fn read_model(books: &Books, faults: &mut Vec<String>) {
    // sorted, so that the same fault reads the same each time
    let mut totals: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for order in books.orders.values() {
        let Some(shown) = books.shown.get(&order.id) else {
            faults.push(format!("order {} is not in the read model", order.id));
            continue;
        };
        let same = shown.customer.as_ref() == Some(&order.customer)
            && shown.sku.as_ref() == Some(&order.sku)
            && shown.quantity == Some(order.quantity)
            && shown.cents == Some(order.cents)
            && shown.status.as_ref() == Some(&order.status)
            && shown.reason == order.reason
            && shown.version == Some(order.version);
        let (stock, payment) = match (order.status.as_str(), order.reason.as_deref()) {
            ("confirmed", _) => ("reserved", Some("taken")),
            (_, Some("payment refused")) => ("released", Some("refused")),
            _ => ("refused", None),
        };
        if !same || shown.stock.as_deref() != Some(stock) || shown.payment.as_deref() != payment {
            faults.push(format!("the read model has {shown:?} for {order:?}"));
        }
        let told = books.told.get(&order.id).copied().unwrap_or_default();
        if i64::from(shown.events) != told {
            let (id, events) = (order.id, shown.events);
            faults.push(format!(
                "the read model took {events} events of order {id}, which has {told}"
            ));
        }
        if order.status == "confirmed" {
            let total = totals.entry(&order.customer).or_default();
            *total = (total.0 + 1, total.1 + order.cents);
        }
    }
    for id in books
        .shown
        .keys()
        .filter(|id| !books.orders.contains_key(id))
    {
        faults.push(format!("the read model has order {id}, which there is not"));
    }
    let shown: BTreeMap<_, _> = books
        .totals
        .iter()
        .map(|(name, total)| (name.as_str(), *total))
        .collect();
    if shown != totals {
        faults.push(format!(
            "orders and cents of each customer: {shown:?}, not {totals:?}"
        ));
    }
}

fn by_order(deeds: &[Deed]) -> HashMap<Uuid, Vec<&Deed>> {
    let mut found: HashMap<Uuid, Vec<&Deed>> = HashMap::new();
    for deed in deeds {
        found.entry(deed.order_id).or_default().push(deed);
    }
    found
}
