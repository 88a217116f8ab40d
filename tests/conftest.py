"""Shape checks for the whole package, switched on before it is imported."""

from jaxtyping import install_import_hook

install_import_hook("relict_lightning", "beartype.beartype")
