//! A form as a page shows it: with the values it starts with or, after a refusal, with what was entered and the message at
//! the field that is invalid. Templates ask it through the macros in `parts/form.html`.

use uuid::Uuid;

use super::api::Failed;
use super::form::Fields;
use super::format::sentence;

/// The hidden field with the key of a form that is sent once.
const IDEMPOTENCY_KEY: &str = "idempotencyKey";

/// The header of the API with the key of such a form.
pub(super) fn idempotency_key(fields: &Fields) -> [(&'static str, &str); 1] {
    [("idempotency-key", fields.text(IDEMPOTENCY_KEY))]
}

/// A form on a page.
#[derive(Debug, Default)]
pub(super) struct FormView {
    /// The id of the form, with which the ids of its fields begin.
    pub(super) id: String,
    fields: Vec<FieldView>,
    message: Option<Message>,
    /// Whether the disclosure that holds it is open.
    pub(super) is_open: bool,
}

#[derive(Debug)]
struct FieldView {
    name: String,
    label: String,
    values: Vec<String>,
}

/// Why a form was refused.
#[derive(Debug)]
struct Message {
    /// The field that is invalid; none if it is not in the form.
    field: Option<String>,
    detail: String,
}

/// A form that was sent and refused.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    /// The id of the form.
    pub(super) form: String,
    pub(super) entered: &'a Fields,
    pub(super) failed: &'a Failed,
    /// Names of the API, separated by slashes; the last that the form has is the invalid field.
    pub(super) pointer: String,
}

/// The title of a page, which says whether a form was refused.
pub(super) fn titled(title: &str, refused: Option<&Refused<'_>>) -> String {
    let prefix = refused.map_or("", |_| "Error: ");
    format!("{prefix}{title}")
}

impl<'a> Refused<'a> {
    /// A form whose fields have the names that they have in the API.
    pub(super) fn new(form: impl Into<String>, entered: &'a Fields, failed: &'a Failed) -> Self {
        Self {
            form: form.into(),
            entered,
            failed,
            pointer: failed.pointer().to_owned(),
        }
    }
}

impl FormView {
    pub(super) fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            ..Self::default()
        }
    }

    /// Adds a field with the value it starts with.
    pub(super) fn field(
        mut self,
        name: impl Into<String>,
        label: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.fields.push(FieldView {
            name: name.into(),
            label: label.into(),
            values: vec![value.into()],
        });
        self
    }

    /// Adds the key with which what is sent again takes effect once. It stays after a refusal: an outage may have come after the
    /// effect.
    pub(super) fn idempotent(self) -> Self {
        let key = format!("dashboard-{}", Uuid::new_v4());
        self.field(IDEMPOTENCY_KEY, "", key)
    }

    /// Adds a field that can have several values, such as checkboxes with one name.
    pub(super) fn choices(mut self, name: &str, label: &str, values: Vec<String>) -> Self {
        self.fields.push(FieldView {
            name: name.to_owned(),
            label: label.to_owned(),
            values,
        });
        self
    }

    /// The form with what was entered, open, if it is the one that was refused.
    pub(super) fn or_refused(mut self, refused: Option<&Refused<'_>>) -> Self {
        let Some(refused) = refused.filter(|refused| refused.form == self.id) else {
            return self;
        };
        self = self.filled(refused.entered);
        let mut names = refused.pointer.rsplit('/');
        let field = names.find_map(|name| Some(self.find(name)?.name.clone()));
        self.message = Some(Message {
            field,
            detail: refused.failed.detail(),
        });
        self.is_open = true;
        self
    }

    /// The form with what was entered.
    pub(super) fn filled(mut self, entered: &Fields) -> Self {
        for field in &mut self.fields {
            field.values = entered.all(&field.name).to_vec();
        }
        self
    }

    fn find(&self, name: &str) -> Option<&FieldView> {
        self.fields.iter().find(|field| field.name == name)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.message.is_some()
    }

    /// The text of the error summary.
    pub(super) fn problem(&self) -> String {
        let Some(message) = &self.message else {
            return String::new();
        };
        let field = message.field.as_deref();
        let label = field.and_then(|name| Some(&self.find(name)?.label));
        label.map_or_else(
            || sentence(&message.detail),
            |label| sentence(&format!("{label}: {}", message.detail)),
        )
    }

    /// The id of the invalid field, for the link of the error summary.
    pub(super) fn invalid_id(&self) -> Option<String> {
        let message = self.message.as_ref()?;
        Some(self.field_id(message.field.as_deref()?))
    }

    /// The id of a field. No name of a meter contains a colon, so that it is of no other form.
    pub(super) fn field_id(&self, name: &str) -> String {
        format!("{}:{name}", self.id)
    }

    pub(super) fn label(&self, name: &str) -> &str {
        self.find(name).map_or("", |field| field.label.as_str())
    }

    pub(super) fn value(&self, name: &str) -> &str {
        let first = self.find(name).and_then(|field| field.values.first());
        first.map_or("", String::as_str)
    }

    /// Whether this value of a choice is chosen.
    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.find(name)
            .is_some_and(|field| field.values.iter().any(|it| it == value))
    }

    /// What is wrong with a field.
    pub(super) fn error(&self, name: &str) -> Option<String> {
        let message = self.message.as_ref()?;
        (message.field.as_deref() == Some(name)).then(|| sentence(&message.detail))
    }

    /// The ids of the texts that describe a field: its hint, its message.
    pub(super) fn described_by(&self, name: &str, has_hint: bool) -> Option<String> {
        let id = self.field_id(name);
        match (has_hint, self.error(name).is_some()) {
            (false, false) => None,
            (true, false) => Some(format!("{id}-h")),
            (false, true) => Some(format!("{id}-e")),
            (true, true) => Some(format!("{id}-h {id}-e")),
        }
    }
}
