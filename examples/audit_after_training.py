"""The detector on arrays: after training, without Lightning, with samples from wherever they come.

python examples/audit_after_training.py
"""

from relict_lightning import ReplicaDetector
from relict_lightning.testing import plant_replicas, simulate_heads

# Yours are arrays or tensors [m, channels, *spatial], data sets, or `relict_lightning.data.ImageFolder("training/")`.
training = simulate_heads(30).images
heldout = simulate_heads(120, first_subject=1_000).images
# Here every fourth sample is an altered training image: noisy, blurred, shifted, mirrored or recoloured.
generated = plant_replicas(training, simulate_heads(40, first_subject=2_000).images, rate=0.25, seed=0).images

result = ReplicaDetector().fit(training, heldout).detect(generated)

print(f"Replica rate: {result.replica_rate}")
print(f"Memorization p-value: {result.memorization_p_value:.2g}")
table = result.to_frame()
print(table[table["is_replica"]][["sample", "match", "p_value", "transform"]].to_string(index=False))
