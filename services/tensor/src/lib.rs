//! Numbers on a device: about twenty operations, a scalar specification and the fast paths behind it.
