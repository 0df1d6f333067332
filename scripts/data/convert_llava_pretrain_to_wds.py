"""LLaVA-Pretrain into webdataset shards for energon, asked as Pai-Megatron-Patch's script of this name is.

    python scripts/data/convert_llava_pretrain_to_wds.py LLaVA-Pretrain

reads `blip_laion_cc_sbu_558k.json` there and writes `wds/pretrain-0.tar` and so on, with what `energon prepare` would
write after its questions: VQASample, shards split 9,1,0.
"""

import sys

from neva.launchers.pai_shards import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
