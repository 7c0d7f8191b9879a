//! Steps that steer a run or run a command on this host.

pub mod assert;
pub mod exec;
pub mod plan_run;
pub mod wait;
