"""The error that users read."""


class InputError(ValueError):
    """Bad input: the message says what was expected, what was found, where, and what to do.

    Examples
    --------
    >>> import mindllm
    >>> mindllm.VoxelMasker.from_mask_img("missing.nii.gz")
    Traceback (most recent call last):
    ...
    mindllm.utils.errors.InputError: mask: there is no file missing.nii.gz.
    """
