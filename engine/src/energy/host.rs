//! What else happens on the machine.
