//! The whole system over real sockets, the golden data, and the rules that code can hold.
