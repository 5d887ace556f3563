//! States of the things that move, as they stand in the database and on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;

macro_rules! states {
    ($(#[$doc:meta])* $name:ident, $kind:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// The text that stands in the database and in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl FromStr for $name {
            type Err = DomainError;
            fn from_str(value: &str) -> Result<Self, DomainError> {
                match value {
                    $($text => Ok(Self::$variant),)+
                    other => Err(DomainError::Identifier { kind: $kind, value: other.chars().take(80).collect(), expected: concat!($($text, " "),+) }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

states!(
    /// State of a device. Silence is derived from when it was last seen, not stored.
    DeviceState, "device state", {
        /// Enrolled, waiting for a person.
        Pending = "pending",
        /// A member of the fleet.
        Active = "active",
        /// Cut off for ever.
        Revoked = "revoked",
    }
);

states!(
    /// State of a job.
    JobState, "job state", {
        /// Waiting for a worker.
        Queued = "queued",
        /// Leased by a worker.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Given up; the error says why.
        Failed = "failed",
        /// Taken back.
        Cancelled = "cancelled",
    }
);

states!(
    /// State of a variant.
    VariantState, "variant state", {
        /// Meets its budget and floors.
        Made = "made",
        /// Does not; the report names which and the nearest feasible point.
        Rejected = "rejected",
    }
);

states!(
    /// State of a bundle.
    BundleState, "bundle state", {
        /// Can be assigned.
        Sealed = "sealed",
        /// Must not be assigned any more.
        Withdrawn = "withdrawn",
    }
);

states!(
    /// State of a rollout.
    RolloutState, "rollout state", {
        /// Not begun.
        Draft = "draft",
        /// Waiting for a second person.
        WaitingForApproval = "waiting-for-approval",
        /// Spreading.
        Running = "running",
        /// Held by a person.
        Paused = "paused",
        /// A gate failed; devices are going back.
        Halting = "halting",
        /// Every device is back.
        Reverted = "reverted",
        /// Every device proved it.
        Completed = "completed",
        /// Ended by a person or a newer rollout.
        Aborted = "aborted",
    }
);

states!(
    /// What a device has proved about its assignment.
    Observed, "assignment state", {
        /// Sent to the device or waiting for it.
        Offered = "offered",
        /// Being downloaded.
        Delivering = "delivering",
        /// Complete and verified on the device.
        Staged = "staged",
        /// Serving, not yet kept.
        Probation = "probation",
        /// Kept.
        Proven = "proven",
        /// A check failed; the last proven bundle serves.
        Failed = "failed",
        /// The device would not take it.
        Refused = "refused",
        /// A newer assignment took its place.
        Superseded = "superseded",
    }
);

states!(
    /// Over how long telemetry is added up.
    Span, "span", {
        /// A minute.
        Minute = "minute",
        /// An hour.
        Hour = "hour",
        /// A day, UTC.
        Day = "day",
    }
);

impl Observed {
    /// Whether no further evidence can change this state.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Proven | Self::Failed | Self::Refused | Self::Superseded)
    }

    /// Whether signed evidence of `next` may replace this state. Reports repeat and arrive late, so going back is ignored, not an error.
    /// A device that lost power in probation may deliver, stage or prove again, and a failure after proof still counts.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Superseded | Self::Refused => false,
            Self::Failed => matches!(next, Self::Superseded | Self::Proven),
            Self::Proven => matches!(next, Self::Superseded | Self::Failed),
            Self::Offered | Self::Delivering | Self::Staged | Self::Probation => next > self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_reports_do_not_undo_proof() {
        assert!(Observed::Offered.may_become(Observed::Proven));
        assert!(!Observed::Proven.may_become(Observed::Probation));
        assert!(!Observed::Superseded.may_become(Observed::Proven));
        assert!(Observed::Probation.may_become(Observed::Failed));
    }

    #[test]
    fn texts_parse_back() {
        assert_eq!("waiting-for-approval".parse::<RolloutState>().unwrap(), RolloutState::WaitingForApproval);
        assert!("gone".parse::<JobState>().is_err());
    }
}
