"""Stream-T1: test-time search for streaming text-to-video models, as a diffusers pipeline.

Names are loaded when they are first used (PEP 562): importing the package imports neither torch nor diffusers.
"""

from importlib import import_module

_EXPORTS = {
    "StreamT1Pipeline": "pipeline_stream_t1",
    "StreamT1PipelineOutput": "search.outputs",
    "StreamChunk": "search.outputs",
    "NoCandidateLeftError": "search.outputs",
    "PromptTimeline": "search.timeline",
    "CausalWanTransformer3DModel": "models.transformer_causal_wan",
    "StreamingWanDecoder": "models.streaming_decoder",
    "FewStepFlowMatchScheduler": "schedulers.few_step_flow_match",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module(f"{__name__}.pipeline_stream_t1").__version__
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
