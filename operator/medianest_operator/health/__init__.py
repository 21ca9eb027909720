"""What is observed of a serving database: the instances, and the state of its indexes."""
