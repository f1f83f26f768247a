//! The states of a managed node and the ways between them: `rcl_lifecycle`'s default state machine, numbers and names included.

use crate::ros::message::{LifecycleState, LifecycleTransition, TransitionDescription};

/// A lifecycle state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing is loaded.
    Unconfigured = 1,
    /// The engine is open and its costs are known; requests are refused.
    Inactive = 2,
    /// Requests are answered.
    Active = 3,
    /// Shut down; nothing leads out.
    Finalized = 4,
    /// The engine is being opened.
    Configuring = 10,
    /// The engine is being closed.
    CleaningUp = 11,
    /// Open requests are being answered for good.
    ShuttingDown = 12,
    /// About to answer.
    Activating = 13,
    /// Open requests are being answered.
    Deactivating = 14,
    /// Something broke.
    ErrorProcessing = 15,
}

impl State {
    /// Every state there is but `unknown`, which no node is in.
    pub const ALL: [Self; 10] = [
        Self::Unconfigured,
        Self::Inactive,
        Self::Active,
        Self::Finalized,
        Self::Configuring,
        Self::CleaningUp,
        Self::ShuttingDown,
        Self::Activating,
        Self::Deactivating,
        Self::ErrorProcessing,
    ];

    /// Its name in messages.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unconfigured => "unconfigured",
            Self::Inactive => "inactive",
            Self::Active => "active",
            Self::Finalized => "finalized",
            Self::Configuring => "configuring",
            Self::CleaningUp => "cleaningup",
            Self::ShuttingDown => "shuttingdown",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::ErrorProcessing => "errorprocessing",
        }
    }

    /// As a message.
    #[must_use]
    pub fn message(self) -> LifecycleState {
        LifecycleState { id: self as u8, label: self.label().to_owned() }
    }
}

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Open the engine.
    Configure,
    /// Close it.
    CleanUp,
    /// Begin to answer.
    Activate,
    /// Stop to answer.
    Deactivate,
    /// For good.
    ShutDown,
}

/// One edge of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Its number in messages.
    pub id: u8,
    /// Its name in messages.
    pub label: &'static str,
    /// Where it starts.
    pub start: State,
    /// Where it ends.
    pub goal: State,
}

const fn edge(id: u8, label: &'static str, start: State, goal: State) -> Transition {
    Transition { id, label, start, goal }
}

/// The edges a client may ask for, and what each does.
const CHANGES: [(Change, Transition); 7] = {
    use State::*;
    [
        (Change::Configure, edge(1, "configure", Unconfigured, Configuring)),
        (Change::CleanUp, edge(2, "cleanup", Inactive, CleaningUp)),
        (Change::Activate, edge(3, "activate", Inactive, Activating)),
        (Change::Deactivate, edge(4, "deactivate", Active, Deactivating)),
        (Change::ShutDown, edge(5, "shutdown", Unconfigured, ShuttingDown)),
        (Change::ShutDown, edge(6, "shutdown", Inactive, ShuttingDown)),
        (Change::ShutDown, edge(7, "shutdown", Active, ShuttingDown)),
    ]
};

/// The edges that follow on their own.
const OUTCOMES: [Transition; 18] = {
    use State::*;
    [
        edge(10, "transition_success", Configuring, Inactive),
        edge(11, "transition_failure", Configuring, Unconfigured),
        edge(12, "transition_error", Configuring, ErrorProcessing),
        edge(20, "transition_success", CleaningUp, Unconfigured),
        edge(21, "transition_failure", CleaningUp, Inactive),
        edge(22, "transition_error", CleaningUp, ErrorProcessing),
        edge(30, "transition_success", Activating, Active),
        edge(31, "transition_failure", Activating, Inactive),
        edge(32, "transition_error", Activating, ErrorProcessing),
        edge(40, "transition_success", Deactivating, Inactive),
        edge(41, "transition_failure", Deactivating, Active),
        edge(42, "transition_error", Deactivating, ErrorProcessing),
        edge(50, "transition_success", ShuttingDown, Finalized),
        edge(51, "transition_failure", ShuttingDown, Finalized),
        edge(52, "transition_error", ShuttingDown, ErrorProcessing),
        edge(60, "transition_success", ErrorProcessing, Unconfigured),
        edge(61, "transition_failure", ErrorProcessing, Finalized),
        edge(62, "transition_error", ErrorProcessing, Finalized),
    ]
};

impl Transition {
    /// What a client asked for by name, or by number without one, from `state`.
    ///
    /// # Errors
    /// What was asked, and what can be.
    pub fn asked(asked: &LifecycleTransition, state: State) -> Result<(Change, Self), String> {
        let possible = || CHANGES.iter().filter(|(_, edge)| edge.start == state);
        let found = possible().find(|(_, edge)| match asked.label.as_str() {
            "" => edge.id == asked.id,
            label => edge.label == label,
        });
        found.copied().ok_or_else(|| {
            let what = match asked.label.as_str() {
                "" => format!("transition {}", asked.id),
                label => format!("transition {label:?}"),
            };
            let labels: Vec<&str> = possible().map(|(_, edge)| edge.label).collect();
            let choice = if labels.is_empty() { "none is possible".to_owned() } else { labels.join(", ") };
            format!("{what} does not start in the state {}: {choice}", state.label())
        })
    }

    /// The edge of `change` from `state`.
    #[must_use]
    pub fn of(change: Change, state: State) -> Option<Self> {
        CHANGES.iter().find(|(what, edge)| *what == change && edge.start == state).map(|(_, edge)| *edge)
    }

    /// The edge that follows on `state` when its work succeeded or failed.
    #[must_use]
    pub fn outcome(state: State, has_succeeded: bool) -> Option<Self> {
        let label = if has_succeeded { "transition_success" } else { "transition_failure" };
        OUTCOMES.iter().find(|edge| edge.start == state && edge.label == label).copied()
    }

    /// Those a client may ask for in `state`.
    pub fn available(state: State) -> impl Iterator<Item = Self> {
        CHANGES.into_iter().map(|(_, edge)| edge).filter(move |edge| edge.start == state)
    }

    /// All edges.
    pub fn all() -> impl Iterator<Item = Self> {
        CHANGES.into_iter().map(|(_, edge)| edge).chain(OUTCOMES)
    }

    /// Itself as a message.
    #[must_use]
    pub fn message(self) -> LifecycleTransition {
        LifecycleTransition { id: self.id, label: self.label.to_owned() }
    }

    /// With where it starts and ends, as a message.
    #[must_use]
    pub fn description(self) -> TransitionDescription {
        TransitionDescription {
            transition: self.message(),
            start_state: self.start.message(),
            goal_state: self.goal.message(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: u8, label: &str) -> LifecycleTransition {
        LifecycleTransition { id, label: label.to_owned() }
    }

    #[test]
    fn a_transition_is_found_by_name_whatever_its_number_and_by_number_without_a_name() {
        let by_name = Transition::asked(&asked(99, "shutdown"), State::Inactive).unwrap();
        assert_eq!((by_name.0, by_name.1.id), (Change::ShutDown, 6));
        assert_eq!(Transition::asked(&asked(1, ""), State::Unconfigured).unwrap().0, Change::Configure);
    }

    #[test]
    fn what_does_not_start_here_is_refused_with_what_does() {
        let reason = Transition::asked(&asked(0, "activate"), State::Unconfigured).unwrap_err();
        assert_eq!(
            reason,
            "transition \"activate\" does not start in the state unconfigured: configure, shutdown"
        );
        assert!(Transition::asked(&asked(3, ""), State::Finalized).unwrap_err().contains("none is possible"));
        assert!(Transition::asked(&asked(1, ""), State::Configuring).is_err());
    }

    #[test]
    fn every_way_through_the_states_ends_in_one_that_rests() {
        for (_, change) in CHANGES {
            for has_succeeded in [true, false] {
                let end = Transition::outcome(change.goal, has_succeeded).unwrap().goal;
                assert!((end as u8) < 10, "{change:?} ends in {end:?}");
            }
        }
    }

    #[test]
    fn numbers_are_used_once() {
        let mut ids: Vec<u8> = Transition::all().map(|edge| edge.id).collect();
        ids.sort_unstable();
        let len = ids.len();
        ids.dedup();
        assert_eq!((ids.len(), len), (25, 25));
    }
}
