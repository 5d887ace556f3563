//! Everything that crosses a wire: the generated gRPC types, their conversions to and from the domain, and the JSON views of the REST interface.
//!
//! Wire types stop here: nothing beyond the two servers and this crate sees them.

pub mod convert;
pub mod error;
pub mod offline;
pub mod rest;

pub use error::WireError;

/// Version of the fleet protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// Oldest version that the controller still accepts.
pub const OLDEST_PROTOCOL_VERSION: u32 = 1;
/// Largest gRPC message either side accepts, in bytes. Larger things travel by `Fetch`.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Context under which reports are signed.
pub const REPORT_CONTEXT: &str = "pleach/report/v1";
/// Context under which the sealing key is signed at enrolment.
pub const SEALING_KEY_CONTEXT: &str = "pleach/sealing-key/v1";

/// The Open Inference Protocol, version 2.
pub mod inference {
    #![allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)] // generated
    tonic::include_proto!("inference");
}

/// Pleach's own packages, nested as in the .proto files.
pub mod pleach {
    #![allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)] // generated
    /// Between controller and agents.
    pub mod v1 {
        tonic::include_proto!("pleach.v1");
    }
    /// On the device, for its applications.
    pub mod device {
        /// First version.
        pub mod v1 {
            tonic::include_proto!("pleach.device.v1");
        }
    }
    /// Between the two halves of an agent.
    pub mod runtime {
        /// First version.
        pub mod v1 {
            tonic::include_proto!("pleach.runtime.v1");
        }
    }
}

pub use pleach::device::v1 as device;
pub use pleach::runtime::v1 as runtime;
pub use pleach::v1 as fleet;
