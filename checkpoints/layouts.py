"""The published generators: where they are, how their files hold the weights, what they were trained for.

Taken from the code and READMEs that their authors publish; the licences are those of these repositories. A model's
page on the Hub may say more, and is read when the model comes from there.
"""

from dataclasses import dataclass

WAN_BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # text encoder, tokenizer, VAE and the transformer's config
TRAINED_FRAMES = 21  # latent frames of a training video, all of which the models without a local window attend to


@dataclass(frozen=True)
class Generator:
    """A published generator. The settings of its training become the pipeline's config."""

    title: str
    checkpoint: str  # `hub_id:file`, or the Hub id of a diffusers folder
    dicts: tuple[str, ...]  # of the file, the first one present holds the weights to use
    window_frames: int
    sink_frames: int
    memory: str  # the policy of `search/memory_sinking.py`, with its defaults
    repository: str  # of the authors' code
    license: str  # of that repository, by the Hub's short name
    lora: str | None = None
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    chunk_frames: int = 3
    fps: int = 16

    @property
    def hub_id(self) -> str:
        return self.checkpoint.partition(":")[0]

    @property
    def file(self) -> str:
        """File in the Hub's repository; empty where the whole repository is the checkpoint."""
        return self.checkpoint.partition(":")[2]


GENERATORS = {
    "longlive": Generator(
        title="LongLive 1.0",
        checkpoint="Efficient-Large-Model/LongLive-1.3B:models/longlive_base.pt",
        lora="Efficient-Large-Model/LongLive-1.3B:models/lora.pt",
        dicts=("generator", "model", "generator_ema", ""),
        window_frames=12,
        sink_frames=3,
        memory="StaticSink",
        repository="https://github.com/NVlabs/LongLive",
        license="apache-2.0",
    ),
    "self-forcing": Generator(
        title="Self-Forcing",
        checkpoint="gdhe17/Self-Forcing:checkpoints/self_forcing_dmd.pt",
        dicts=("generator_ema", "generator", ""),
        window_frames=TRAINED_FRAMES,
        sink_frames=0,
        memory="SlidingWindow",
        repository="https://github.com/guandeh17/Self-Forcing",
        license="apache-2.0",
    ),
    "reward-forcing": Generator(
        title="Reward Forcing",
        checkpoint="JaydenLu666/Reward-Forcing-T2V-1.3B:rewardforcing.pt",
        dicts=("", "generator_ema", "generator"),
        window_frames=9,
        sink_frames=3,
        memory="EMASink",
        repository="https://github.com/JaydenLyh/Reward-Forcing",
        license="apache-2.0",
    ),
    "causal-forcing": Generator(
        title="Causal Forcing",
        checkpoint="zhuhz22/Causal-Forcing:chunkwise/causal_forcing.pt",
        dicts=("generator", "generator_ema", ""),  # the authors run the chunk-wise model without EMA
        window_frames=TRAINED_FRAMES,
        sink_frames=0,
        memory="SlidingWindow",
        repository="https://github.com/thu-ml/Causal-Forcing",
        license="apache-2.0",
    ),
    "fastvideo": Generator(
        title="FastVideo's Self-Forcing",
        checkpoint="wlsaidhi/SFWan2.1-T2V-1.3B-Diffusers",
        dicts=("",),
        window_frames=TRAINED_FRAMES,
        sink_frames=0,
        memory="SlidingWindow",
        repository="https://github.com/hao-ai-lab/FastVideo",
        license="apache-2.0",
    ),
}
