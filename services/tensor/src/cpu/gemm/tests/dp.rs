//! What `vdpbf16ps` computes on the processor at hand.
