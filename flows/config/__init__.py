"""From configuration to objects: what is right (:mod:`.checking`), and what may be built (:mod:`.building`)."""
