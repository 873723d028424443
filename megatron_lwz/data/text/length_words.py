"""The words and signs that statements of lengths consist of, for normalized text: lower case and half width."""

from __future__ import annotations

import re

from megatron_lwz.data.text.numerals import NUMBER

_LIMIT_NAMES = "count|limit|length|total|target|range|requirement|goal|minimum|maximum|min|max|cap"
_COMPARED = "(?:more|longer|greater|higher|bigger|larger)"
_COMPARED_LESS = "(?:less|fewer|shorter|lower|smaller)"
TEXTS = (
    "essay|article|story|text|post|blog|paper|report|speech|letter|piece|response|answer|reply|summary|review|novel|poem|"
    "assignment|document|novella|script|column|email|description|guide|proposal|composition|output|draft"
)
_PARTS = (
    "section|chapter|paragraph|part|page|scene|stanza|heading|subheading|topic|point|item|question|day|week|minute|hour"
)

_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        "fixed",
        r"no more,? (?:and |or |but )?no less(?: than)?|no less,? (?:and |or |but )?no more(?: than)?|"
        r"neither more nor less(?: than)?|or equal to|no problem|more or less",
        r"不多不少|千字文(?![章案本稿])|不过(?=[,;不])|不妨|不限(?:字数|长度|篇幅)?|(?:字数)?上?不(?:限|封顶)|"
        r"一[篇个份段]|一定|一共|一般|一直|十分|万一|统一|千万(?=[不别勿要记])",
    ),
    ("stop", "", r"[.!?。]+|\n+"),
    (
        "vague",
        r"(?:several|few|many|couple(?: of)?|some|tens of|hundreds of|thousands of) (?:hundred|thousand)s?",
        r"[几数好上] ?[百千万]+|第 ?[\d零一二三四五六七八九十百千万]+",
    ),
    (
        "tolerance",
        r"plus[ /](?:or[ /])?minus|give or take|tolerance|leeway|margin|deviation|variation|variance|"
        r"either (?:way|side|direction)|over or under|above or below",
        r"±|\+ ?/ ?-|\+-(?= ?\d)|上下浮动|浮动|误差|偏差|出入|正负",
    ),
    ("instead", "instead of|rather than|as opposed to", "而不是|而非|不是|并非"),
    (
        "label",
        rf"word(?=[ -]?(?:{_LIMIT_NAMES})s?(?![a-z]))|number of words|length in words|words? ?(?=[:=<>≤≥])",
        "字数|词数",
    ),
    ("number", NUMBER, NUMBER),
    (
        "unit",
        "words?|wds?|char(?:acter)?s?",
        r"英[文语]单词|单词|中文字符?|汉字|字符(?!集|的?英[文语])|字(?![节母体典幕经眼库形帖型诀令谜段符])|词(?![汇语组条性典库])",
    ),
    ("percent", "percent|per cent", "%|百分之"),
    (
        "most_before",
        r"up to|within|(?:a |the )?max(?:\.|imum)? of|less than or equal to|"
        r"(?:limit(?:ed|ing)?|cap(?:ped)?)(?: (?:it|them|this|yourself))? (?:to|at)",
        "<=|≤|不到|不足|限(?![度于制定])",
    ),
    (
        "least_before",
        rf"no {_COMPARED_LESS}(?! than)|upwards? of|(?:a |the )?min(?:\.|imum)? of|{_COMPARED} than or equal to",
        ">=|≥|不下于?",
    ),
    (
        "least_after",
        rf"(?:plus|or (?:{_COMPARED}|above|over|up)|(?:and|or) (?:up|above|over|upwards?)|upwards?)(?! to| than| of| \d)",
        r"\+(?! ?/ ?-)|[余多](?=个?(?:字|词|单词|汉字|words))|及?以上|或以上|(?<=[字词\d])起步?(?![来到码])|往上|打底|或更多",
    ),
    (
        "most_after",
        rf"(?:(?:or|and) (?:{_COMPARED_LESS}|under|below)|tops)(?! than| to| \d)",
        "之内|以内|内(?![容心涵部在地向外])|及?以下|或以下|或更少|封顶|为限|为上限|为止",
    ),
    (
        "least",
        r"at (?:the )?(?:very )?(?:least|minimum)|at a minimum|minimum|min\.?|lower (?:limit|bound)",
        "至少|最少|起码|最低|最短|下限",
    ),
    (
        "most",
        r"at (?:the )?(?:very )?(?:most|maximum)|at a maximum|maximum|max\.?|(?:upper |hard |word )?limit(?:ed)?|"
        r"upper bound|cap(?:ped)?",
        "至多|最多|最大|最长|最高|上限|顶多|限制",
    ),
    (
        "more",
        rf"{_COMPARED} than|(?<!the )above|over|exceed(?:s|ed|ing)?|beyond|surpass(?:es|ing)?|in excess of|past",
        ">|超过|超出|多于|大于|高于|长于|逾|超",
    ),
    ("less", rf"{_COMPARED_LESS} than|under|(?<!the )below|short of", "<|少于|低于|小于|短于"),
    (
        "not",
        r"(?:do|does|did|should|must|could|wo|would|need|is|are|has|have|ca|may)n't|cannot|dont|not?|never|without|"
        r"neither|nor|avoid(?:ing)?",
        r"(?:不(?![错仅但过同知断管论如只止])|勿|未(?![来知])|(?<![特分级类区性个告识])别|切忌|无|没有?)"
        r"(?:得|能|要|可以?|应该?当?|宜|准|许|允许|会|需要?|必|想|用)*",
    ),
    (
        "about",
        r"about|around|approx(?:imately|\.)?|roughly|circa|ca\.|some|nearly|almost|close to|ideally|preferably|"
        r"target(?:ing|ed)?|aim(?:ing|ed)?(?: for| at)?|or so|ish|maybe|perhaps",
        "-ish(?![a-z])|来(?=个?[字词])|≈|大?约|大概|大致|左右|上下|最好|理想|建议|差不多|将?近|接近",
    ),
    ("between", "between|from", "介于"),
    ("joint", "to|through|until", r"-+|~+|到|至|(?<=\d)/(?=\d)"),
    ("or", "or", "或者?"),
    ("and", "and", "&|和|与|及"),
    (
        "sep",
        "but|yet|though|although|however|while",
        r"[,;、()\[\]{}|/《》“”#]|且|并|而且?|但是?|又|既|也|然而|同时",
    ),
    (
        "total",
        "in total|total(?:ling|s|ing)?|overall|altogether|in all|combined",
        "全文|全篇|全书|整篇|总共|合计|共计|共|总计?(?!结)",
    ),
    ("per", "each|every|per|apiece", "每|各|分别|平均"),
    ("part", f"(?:{_PARTS})s?", "[段章节页]"),
    ("whole", f"(?:{TEXTS})s?|stories", "文章|作文|论文|报告|小说|故事|正文"),
    ("adj", "english|chinese|more|additional|full|extra", "个|中文|英[文语]"),
    ("prep", "in|into|as|for|with|at|by", ""),
    (
        "verb",
        "writ(?:e|ten|ing)|make|use|using|give|keep|kept|submit|hand|turn|send|reach|hit|produce|deliver",
        "撰?写|要求|用",
    ),
    (
        "fill",
        "an?|the|of|is|are|be|being|was|it|its|it's|that|which|long|length|should|must|shall|will|"
        "would|may|can|could|need(?:s|ed)?|ha(?:ve|s|ving)|get|go(?:es|ing)?|fall(?:s|ing)?|drop|run|sure|"
        "please|just|only|strict(?:ly)?|absolute(?:ly)?|hard|soft|contain(?:s|ing)?|you|i|i'd|me|we|want|like|"
        "any|much|prefer|then|also|still|even|anywhere|anything|something|ok(?:ay)?|fine|allowed|required|requirements?|"
        "range|count|exact(?:ly)?|precisely|acceptable|enough",
        "篇幅|长度|控制|保持|限定|设定|范围|之间|间|允许|在|为|是|需要?|应该?当?|必?须|务必|要|达到?|有|于|了|"
        "的|整整|请|尽量|严格|正好|刚好|恰好|即可|就行|就好|就|可以?|都|均|吧|够|以|把|将|给|我|想|希望|能|宜|佳|即|"
        "[:=\"'~]",
    ),
)
"""(kind, whole English words, Chinese words and signs)."""


def _any(kinds: list[tuple[str, str]], suffix: str) -> str:
    return "|".join(f"(?P<{name}_{suffix}>{pattern})" for name, pattern in kinds if pattern)


TOKEN = re.compile(
    rf"(?<![a-z])(?=[a-z])(?:{_any([(name, english) for name, english, _ in _KINDS], 'en')})(?![a-z])|"
    rf"(?=[0-9])(?<!\d[.,])(?<![0-9a-z$€£¥#])(?P<number_digits>{NUMBER})|"
    rf"(?![a-z0-9])(?:{_any([(name, chinese) for name, _, chinese in _KINDS], 'zh')})"
)
"""One word or sign of a statement, in a group named after its kind and writing ("least_en"). Earlier kinds win.

fixed: expressions that hold other words or numbers and state nothing. stop: the end of a sentence or line. vague: numbers
that are none ("several thousand", "第3"). tolerance: of a number ("±"). instead, not: deny what follows. label: names the
unit before the number ("word count"). most_before … less: bounds, see `length_bounds`. about: no bound, but a length.
sep: separates clauses. per, part: of one of several. whole: names of texts. The others only link words.
"""
UNIT = re.compile("word|wd|char|[字词]")
"""Without any of these a text states no length."""
