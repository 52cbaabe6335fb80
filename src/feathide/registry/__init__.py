"""Names with arguments, plug-ins, and a user's own code by name."""
