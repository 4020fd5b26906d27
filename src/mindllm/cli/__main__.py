"""The command line as a module, for launchers: `torchrun -m mindllm.cli train ...`."""

from mindllm.cli import main

if __name__ == "__main__":
    main()
