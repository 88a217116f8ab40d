"""Shape checks for the whole package, switched on before it is imported; and no test depends on how fast it runs."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("relict_lightning", "beartype.beartype")
# Machines are shared, and what is fast enough on one is not on another.
settings.register_profile("untimed")
settings.load_profile("untimed")
