"""What to simulate."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mindllm.simulate.scenes import ATTRIBUTES


class SimulateConfig(BaseModel):
    """What to simulate. Response amplitudes are in percent signal change; the defaults suit a demo of a few minutes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(default=0, ge=0)
    n_subjects: int = Field(default=8, ge=1)
    resolution_mm: float = Field(default=4.0, ge=2, le=10)
    train_stimuli: int = Field(default=200, ge=8)
    val_stimuli: int = Field(default=20, ge=1)
    test_stimuli: int = Field(default=60, ge=2)
    n_repetitions: int = Field(
        default=2, ge=1, description="showings of each stimulus, each in a session of its own"
    )
    runs_per_session: int = Field(default=4, ge=1)
    signal: float = Field(
        default=1.0,
        ge=0,
        description="size of everything that depends on the stimulus; 0 = null data",
    )
    tuning_fwhm_mm: float = Field(default=20.0, gt=0, description="smoothness of the shared code")
    shift_mm: float = Field(
        default=2.5,
        ge=0,
        description="sd, along each axis, of a person's displacement from the shared code",
    )
    gain_sd: float = Field(
        default=0.25, ge=0, description="sd of the logarithm of a person's local gain"
    )
    subject_specific_scale: float = Field(
        default=0.4, ge=0, description="size of a person's own patterns relative to the shared code"
    )
    subject_specific_fwhm_mm: float = Field(
        default=40.0, gt=0, description="smoothness of a person's displacement and gain"
    )
    response_noise: float = Field(
        default=0.4,
        ge=0,
        description="sd of each value's strength from trial to trial; no number of voxels averages it away",
    )
    smooth_noise: float = Field(default=1.0, ge=0)
    smooth_noise_fwhm_mm: float = Field(default=12.0, gt=0)
    voxel_noise: float = Field(default=2.0, gt=0)
    run_offset: float = Field(
        default=0.5, ge=0, description="sd of each run's baseline, as a whole and as a smooth map"
    )
    coverage: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="share of the visual voxels that a person has, within 10 percent",
    )
    unmodelled_fraction: float = Field(
        default=0.1, ge=0, le=1, description="share of the remaining grey matter that a person has"
    )
    constant_voxels: int = Field(
        default=5, ge=0, description="voxels of each person that never vary, as real data has"
    )
    n_fourier_features: int = Field(default=400, ge=10, description="plane waves per random field")

    @model_validator(mode="after")
    def enough_scenes(self) -> Self:
        wanted = self.train_stimuli + self.val_stimuli + self.test_stimuli
        possible = int(np.prod([len(values) for values in ATTRIBUTES.values()]))
        if wanted > possible // 2:
            raise ValueError(
                f"{wanted} stimuli asked for, but only {possible} scenes exist and half of them may be used; ask for at most {possible // 2}."
            )
        return self
