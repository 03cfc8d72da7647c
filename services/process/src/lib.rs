//! A well-behaved process: configuration, telemetry, health, shutdown, channels.
