"""What to simulate."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mindllm.simulate.scenes import ATTRIBUTES, POSITION_TUNING, POSITIONS, TUNINGS, Tuning


class SimulateConfig(BaseModel):
    """What to simulate; response amplitudes are in percent signal change.

    The defaults suit a demo of a few minutes.
    """

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
        description="size of everything that depends on the stimulus; 0: null data",
    )
    tuning_fwhm_mm: float = Field(
        default=20.0, gt=0, description="smoothness of the shared patterns"
    )
    shift_mm: float = Field(
        default=2.5,
        ge=0,
        description="sd, along each axis, of a subject's displacement of the shared patterns",
    )
    gain_sd: float = Field(
        default=0.25, ge=0, description="sd of the logarithm of a subject's local gain"
    )
    subject_specific_scale: float = Field(
        default=0.4,
        ge=0,
        description="size of a subject's own patterns relative to the shared ones",
    )
    subject_specific_fwhm_mm: float = Field(
        default=40.0, gt=0, description="smoothness of a subject's displacement and gain"
    )
    response_noise: float = Field(
        default=0.4,
        ge=0,
        description="sd of each value's strength from trial to trial, which no number of voxels "
        "averages out",
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
        description="fraction of the visual voxels that a subject has, within 10 percent",
    )
    unmodelled_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="fraction of the remaining grey matter that a subject has",
    )
    constant_voxels: int = Field(
        default=5, ge=0, description="voxels of each subject that never vary, as real data has"
    )
    n_fourier_features: int = Field(default=400, ge=10, description="plane waves per random field")
    with_questions: bool = Field(
        default=False,
        description="whether agents have a position in the image, which early visual cortex codes, "
        "and files of questions and boxes are written, in the layouts of TDIUC and RefCOCO",
    )

    @property
    def attributes(self) -> dict[str, dict[str, str]]:
        """Attributes of a scene, their values, and the words for these."""
        return ATTRIBUTES | POSITIONS if self.with_questions else ATTRIBUTES

    @property
    def tunings(self) -> tuple[Tuning, ...]:
        """Which attributes drive which parcels."""
        return (*TUNINGS, POSITION_TUNING) if self.with_questions else TUNINGS

    @model_validator(mode="after")
    def check_enough_scenes(self) -> Self:
        """Refuse more stimuli than half of the possible scenes."""
        n_stimuli = self.train_stimuli + self.val_stimuli + self.test_stimuli
        n_scenes = int(np.prod([len(values) for values in ATTRIBUTES.values()]))
        if n_stimuli > n_scenes // 2:
            raise ValueError(
                f"{n_stimuli} stimuli asked for, but only {n_scenes} scenes exist and half of them "
                f"may be used; ask for at most {n_scenes // 2}."
            )
        return self
