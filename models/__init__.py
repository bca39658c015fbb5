"""The causal Wan transformer, its chunk memory, and the streaming VAE decoder."""

from .memory import CachedChunk, ChunkContext, ChunkMemory
from .streaming_decoder import DecoderState, StreamingWanDecoder
from .transformer_causal_wan import CausalWanTransformer3DModel

__all__ = [
    "CachedChunk",
    "CausalWanTransformer3DModel",
    "ChunkContext",
    "ChunkMemory",
    "DecoderState",
    "StreamingWanDecoder",
]
