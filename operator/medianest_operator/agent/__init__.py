"""What runs next to a database, in Jobs and on laptops: the command line `medianest-dbctl`."""

import os

# Pydantic looks through every installed distribution for plugins otherwise, which takes longer than all of a run that
# finds nothing to do.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
