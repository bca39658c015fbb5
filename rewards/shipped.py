"""The rewards that ship, by the names of their classes.

A class registers its `kind` when it is defined (`Reward.__init_subclass__`), so `Reward.from_pretrained` knows a kind
only once the class's module is imported. Importing this module imports them all: the pipeline does so, and diffusers'
loader of remote code fetches what the pipeline imports. Add a new reward to this list.
"""

from . import base, clip, combining, consistency, hpsv3, pixel_statistics, videoalign

SHIPPED_REWARDS: dict[str, type["base.Reward"]] = {
    reward.__name__: reward
    for reward in (
        clip.AestheticReward,
        clip.CLIPScoreReward,
        clip.PickScoreReward,
        combining.GatedReward,
        combining.WeightedReward,
        consistency.BackgroundConsistencyReward,
        consistency.SubjectConsistencyReward,
        hpsv3.HPSv3Reward,
        pixel_statistics.ChunkSeamReward,
        pixel_statistics.DynamicDegreeReward,
        pixel_statistics.ExposureReward,
        pixel_statistics.SharpnessReward,
        pixel_statistics.TemporalFlickerReward,
        videoalign.VideoAlignReward,
    )
}
