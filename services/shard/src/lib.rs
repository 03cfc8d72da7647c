//! The service that holds one stage on one device and executes plans.
