//! What of an outbox's table travels, and where to: the keys that only make sense together.

use super::keys::{self, Spec};
use super::problem::Problem;
use super::settings::Settings;
use super::written::Origin;
use super::{Layout, OnPublished, Placed};
use crate::cloudevents::{self, CloudEvents};
use crate::connect::{Connect, Format};
use crate::record::{Encoding, RESERVED, Style};
use crate::rewrite::Rewrite;
use crate::route::Template;

impl Settings {
    /// The columns of outbox `index`, what travels of them, and where to.
    ///
    /// # Errors
    /// The first thing that is wrong, or does not go together.
    pub(super) fn wire(&self, index: usize) -> Result<(Layout, Template, Encoding), Problem> {
        let disagree = |spec: &Spec, text: String| {
            let origin = self.written(index, spec).map(|written| written.origin);
            match origin.filter(|origin| *origin != Origin::Default) {
                Some(origin) => Problem::at(&origin, text),
                None => Problem::at(&self.outboxes[index], text),
            }
        };
        let mut layout = self.read_of(index, &keys::LAYOUT)?;
        let headers = self.read_of(index, &keys::HEADERS)?;
        let mut template = self.read_of(index, &keys::TOPIC)?.of_layout(&layout);
        let pattern = self.read_of(index, &keys::TOPIC_REGEX)?;
        if !pattern.is_empty() {
            let replacement = self.read_of(index, &keys::TOPIC_REPLACEMENT)?;
            let rewrite = Rewrite::parse(&pattern, &replacement).map_err(|why| {
                disagree(
                    &keys::TOPIC_REGEX.spec,
                    format!("`outbox.topic_regex`: {why}"),
                )
            })?;
            template = template.rewritten(rewrite);
        }
        if let Some(header) = headers.created_at {
            let Some(column) = layout.created_at.clone() else {
                return Err(disagree(
                    &keys::HEADERS.spec,
                    "`outbox.headers` has created_at, and the layout names no column for it"
                        .to_owned(),
                ));
            };
            layout.placed.push(Placed {
                column,
                header,
                is_time: true,
            });
        }
        for placed in self.read_of(index, &keys::HEADERS_FROM)? {
            let name = &placed.header;
            let ours = headers.of_event.iter().map(|(_, ours)| ours);
            let taken = ours.chain(layout.placed.iter().map(|placed| &placed.header));
            if taken.into_iter().any(|taken| taken == name) || name.starts_with(RESERVED) {
                return Err(disagree(
                    &keys::HEADERS_FROM.spec,
                    format!("`outbox.headers_from`: there is a header `{name}` already"),
                ));
            }
            layout.placed.push(placed);
        }
        layout.routing = template.columns().to_vec();
        if layout.published_at.is_none()
            && self.read_of(index, &keys::ON_PUBLISHED)? == OnPublished::Mark
        {
            return Err(disagree(
                &keys::ON_PUBLISHED.spec,
                "`outbox.on_published` is \"mark\", and the layout has no column to mark: take \"delete\" or \
                 \"archive\", or name a column for published_at"
                    .to_owned(),
            ));
        }
        let formats = self.read_of(index, &keys::FORMATS)?;
        let events = self.read_of(index, &keys::CLOUDEVENTS)?;
        let style = match (formats.are_plain(), events) {
            (true, None) => Style::Plain,
            (false, None) => {
                if formats.headers != Format::Plain && layout.headers.is_some() {
                    return Err(disagree(
                        &keys::FORMATS.spec,
                        "`outbox.formats` has headers, and the layout has headers of the row's own, whose types no \
                         JsonConverter knows: leave one of the two out"
                            .to_owned(),
                    ));
                }
                Style::Connect(Box::new(Connect::new(formats)))
            }
            (true, Some(events)) => {
                let ours = headers.of_event.iter().map(|(_, name)| name);
                let mut all = ours.chain(layout.placed.iter().map(|placed| &placed.header));
                if let Some(name) = all.find(|name| CloudEvents::reserves(name)) {
                    return Err(disagree(
                        &keys::CLOUDEVENTS.spec,
                        format!(
                            "`outbox.cloudevents`: `{name}` is a header of its own; give that another name"
                        ),
                    ));
                }
                let time = layout.created_at.clone().map(|column| Placed {
                    column,
                    header: cloudevents::TIME.to_owned(),
                    is_time: true,
                });
                layout.placed.extend(time);
                Style::CloudEvents(Box::new(events))
            }
            (false, Some(_)) => {
                return Err(disagree(
                    &keys::CLOUDEVENTS.spec,
                    "`outbox.cloudevents` and `outbox.formats` do not go together: a CloudEvent is written in its \
                     own way"
                        .to_owned(),
                ));
            }
        };
        let encoding = Encoding {
            style,
            headers: headers.of_event,
            tombstone_on_empty_payload: self.read_of(index, &keys::TOMBSTONE_ON_EMPTY_PAYLOAD)?,
        };
        Ok((layout, template, encoding))
    }
}
