"""A short text in two languages, written for this project, on which models are compared."""

from __future__ import annotations

ENGLISH = """The lighthouse keeper kept two notebooks. In the first he wrote what the sea did: the height of the waves, \
the colour of the water at six in the morning, the ships that passed and those that turned back. In the second he wrote \
what he thought about it, and this one nobody was allowed to read.

When the lamp was replaced by a machine in 1987, he was asked to hand over his records. He gave them the first notebook. \
"And what happened on the days without an entry?" the officer asked. "Nothing," said the keeper, "so I had time to look." \
Years later his granddaughter opened the second one and found 412 pages, each of which began with the same three words: \
"Today, however, …"
"""

CHINESE = """老木匠的铺子在河边，门前有一棵槐树。每年春天，他都要从树上折一根枝条，量一量长短，再记在墙上。\
有人问他这是为什么，他说：“树不会说话，我替它记着年纪。”

后来城里修路，槐树被移走了，墙上的记号停在第三十七道。老人没有再做新的家具，只把旧椅子一把一把修好，送给邻居。\
最后一把他留给了自己，坐在门口，看河水慢慢地流。孩子们问：“爷爷，您在等什么？”他笑着回答：“等它重新发芽。”
"""

TEXTS = (ENGLISH, CHINESE)
