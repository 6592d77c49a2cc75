//! The organizations of a run: groups that differ in what happens to them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rand::RngExt as _;
use rand::rngs::SmallRng;

/// A group of organizations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Nothing happens to them, so that Redis knows them.
    Steady,
    /// Their periods end at each full hour.
    Hourly,
    /// Meters are reset.
    Reset,
    /// Limits change.
    Limit,
    /// Consumes are admitted while Redis is away.
    Admitted,
    /// Counts are adjusted.
    Adjusted,
    /// They are deleted while they are called.
    Reborn,
    /// They are deleted after the last call, and replaced.
    Replaced,
}

/// How many organizations a group has.
const SIZES: [(Group, usize); 8] = [
    (Group::Steady, 20),
    (Group::Hourly, 8),
    (Group::Reset, 6),
    (Group::Limit, 6),
    (Group::Admitted, 6),
    (Group::Adjusted, 4),
    (Group::Reborn, 4),
    (Group::Replaced, 4),
];

/// An organization in use.
#[derive(Debug)]
pub(super) struct Organization {
    pub(super) group: Group,
    id: RefCell<Rc<str>>,
    /// Calls in flight.
    pub(super) calls: Cell<usize>,
    /// Whether it is about to be replaced.
    pub(super) is_leaving: Cell<bool>,
    /// How often something has happened to it.
    pub(super) changes: Cell<i64>,
}

impl Organization {
    pub(super) fn id(&self) -> Rc<str> {
        Rc::clone(&self.id.borrow())
    }

    /// Another organization takes the place of this one.
    pub(super) fn replace(&self) {
        self.changes.update(|it| it + 1);
        let id = self.id();
        let slot = id.split('.').next().unwrap_or_default();
        self.id
            .replace(format!("{slot}.{}", self.changes.get()).into());
    }
}

/// All organizations.
#[derive(Debug)]
pub(super) struct Organizations(pub(super) Vec<Organization>);

impl Organizations {
    pub(super) fn new() -> Self {
        let numbered = SIZES
            .into_iter()
            .flat_map(|(group, size)| (0..size).map(move |it| (group, it)));
        let organization = |(group, number)| Organization {
            group,
            id: RefCell::new(format!("{group:?}-{number:02}").to_lowercase().into()),
            calls: Cell::new(0),
            is_leaving: Cell::new(false),
            changes: Cell::new(0),
        };
        Self(numbered.map(organization).collect())
    }

    /// One of a group.
    pub(super) fn of(&self, group: Group, random: &mut SmallRng) -> &Organization {
        let all: Vec<_> = self.0.iter().filter(|it| it.group == group).collect();
        all[random.random_range(0..all.len())]
    }

    /// Any; half of the calls are for those that nothing happens to.
    pub(super) fn any(&self, random: &mut SmallRng) -> &Organization {
        if random.random_range(0..3) == 0 {
            return self.of(Group::Steady, random);
        }
        loop {
            let any = &self.0[random.random_range(0..self.0.len())];
            if !any.is_leaving.get() {
                return any;
            }
        }
    }
}
