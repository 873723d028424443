"""The regular expressions of `length_tokens` and `length_statements`, for normalized text: lower case and half width."""

from __future__ import annotations

import re

from megatron_lwz.data.text.numerals import NUMBER


SMALLEST = 50
"""Smallest count that is taken as a length. Smaller ones are of titles, slogans and word lists rather than of texts."""


def _kind(name: str, english: str, chinese: str = "") -> str:
    """Returns a named group that matches whole English words, or Chinese words and signs."""
    return f"(?P<{name}>" + "|".join(filter(None, (english and f"(?<![a-z])(?:{english})(?![a-z])", chinese))) + ")"


_LIMIT_NAMES = "count|limit|length|total|target|range|requirement|goal|minimum|maximum|min|max|cap"
_COMPARED = "(?:more|longer|greater|higher|bigger|larger)"
_COMPARED_LESS = "(?:less|fewer|shorter|lower|smaller)"
_TEXTS = (
    "essay|article|story|text|post|blog|paper|report|speech|letter|piece|response|answer|reply|summary|review|novel|poem|"
    "assignment|document|novella|script|column|email|description|guide|proposal|composition|output|draft"
)
_PARTS = (
    "section|chapter|paragraph|part|page|scene|stanza|heading|subheading|topic|point|item|question|day|week|minute|hour"
)

TOKEN = re.compile(
    "|".join(
        (
            _kind(
                "fixed",
                r"no more,? (?:and |or |but )?no less(?: than)?|no less,? (?:and |or |but )?no more(?: than)?|"
                r"neither more nor less(?: than)?|or equal to|no problem|more or less",
                r"不多不少|千字文(?![章案本稿])|不过(?=[,;不])|不妨|不限(?:字数|长度|篇幅)?|(?:字数)?上?不(?:限|封顶)|"
                r"一[篇个份段]|一定|一共|一般|一直|十分|万一|统一|千万(?=[不别勿要记])",
            ),
            _kind("stop", "", r"[.!?。]+|\n+"),
            _kind(
                "vague",
                r"(?:several|few|many|couple(?: of)?|some|tens of|hundreds of|thousands of) (?:hundred|thousand)s?",
                r"[几数好上] ?[百千万]+|第 ?[\d零一二三四五六七八九十百千万]+",
            ),
            _kind(
                "tolerance",
                r"plus[ /](?:or[ /])?minus|give or take|tolerance|leeway|margin|deviation|variation|variance|"
                r"either (?:way|side|direction)|over or under|above or below|more or less",
                r"±|\+ ?/ ?-|\+-(?= ?\d)|上下浮动|浮动|误差|偏差|出入|正负",
            ),
            _kind("instead", "instead of|rather than|as opposed to", "而不是|而非|不是|并非"),
            _kind(
                "label",
                rf"word(?=[ -]?(?:{_LIMIT_NAMES})s?(?![a-z]))|number of words|length in words|words? ?(?=[:=<>≤≥])",
                "字数|词数",
            ),
            rf"(?P<number>(?<!\d[.,])(?<![0-9a-z$€£¥#]){NUMBER})",
            _kind(
                "unit",
                "words?|wds?|char(?:acter)?s?",
                r"英[文语]单词|单词|中文字符?|汉字|字符(?!集)|字(?![节母体典幕经眼库形帖型诀令谜段符])|词(?![汇语组条性典库])",
            ),
            _kind("percent", "percent|per cent", "%|百分之"),
            _kind(
                "most_before",
                r"up to|within|(?:a |the )?max(?:\.|imum)? of|less than or equal to|"
                r"(?:limit(?:ed|ing)?|cap(?:ped)?)(?: (?:it|them|this|yourself))? (?:to|at)",
                "<=|≤|不到|不足|限(?![度于制定])",
            ),
            _kind(
                "least_before",
                rf"no {_COMPARED_LESS}(?! than)|upwards? of|(?:a |the )?min(?:\.|imum)? of|{_COMPARED} than or equal to",
                ">=|≥|不下于?",
            ),
            _kind(
                "least_after",
                rf"(?:plus|or (?:{_COMPARED}|above|over|up)|(?:and|or) (?:up|above|over|upwards?)|upwards?)(?! to| than| of| \d)",
                r"\+(?! ?/ ?-)|[余多](?=个?(?:字|词|单词|汉字|words))|及?以上|或以上|(?<=[字词\d])起步?(?![来到码])|往上|打底|或更多",
            ),
            _kind(
                "most_after",
                rf"(?:(?:or|and) (?:{_COMPARED_LESS}|under|below)|tops)(?! than| to| \d)",
                "之内|以内|内(?![容心涵部在地向外])|及?以下|或以下|或更少|封顶|为限|为上限|为止",
            ),
            _kind(
                "least",
                r"at (?:the )?(?:very )?(?:least|minimum)|at a minimum|minimum|min\.?|lower (?:limit|bound)",
                "至少|最少|起码|最低|最短|下限",
            ),
            _kind(
                "most",
                r"at (?:the )?(?:very )?(?:most|maximum)|at a maximum|maximum|max\.?|(?:upper |hard |word )?limit(?:ed)?|"
                r"upper bound|cap(?:ped)?",
                "至多|最多|最大|最长|最高|上限|顶多|限制",
            ),
            _kind(
                "more",
                rf"{_COMPARED} than|(?<!the )above|over|exceed(?:s|ed|ing)?|beyond|surpass(?:es|ing)?|in excess of|past",
                ">|超过|超出|多于|大于|高于|长于|逾|超",
            ),
            _kind("less", rf"{_COMPARED_LESS} than|under|(?<!the )below|short of", "<|少于|低于|小于|短于"),
            _kind(
                "not",
                r"(?:do|does|did|should|must|could|wo|would|need|is|are|has|have|ca|may)n't|cannot|dont|not?|never|without|"
                r"neither|nor|avoid(?:ing)?",
                r"(?:不(?![错仅但过同知断管论如只止])|勿|未(?![来知])|(?<![特分级类区性个告识])别|切忌|无|没有?)"
                r"(?:得|能|要|可以?|应该?当?|宜|准|许|允许|会|需要?|必|想|用)*",
            ),
            _kind(
                "about",
                r"about|around|approx(?:imately|\.)?|roughly|circa|ca\.|some|nearly|almost|close to|ideally|preferably|"
                r"target(?:ing|ed)?|aim(?:ing|ed)?(?: for| at)?|or so|-?ish|maybe|perhaps",
                "≈|大?约|大概|大致|左右|上下|最好|理想|建议|差不多|将?近|接近",
            ),
            _kind("between", "between|from", "介于"),
            _kind("joint", "to|through|until", r"-+|~+|到|至|(?<=\d)/(?=\d)"),
            _kind("or", "or", "或者?"),
            _kind("and", "and", "&|和|与|及"),
            _kind(
                "sep",
                "but|yet|though|although|however|while",
                r"[,;、()\[\]{}|/《》“”#]|且|并|而且?|但是?|又|既|也|然而|同时",
            ),
            _kind(
                "total",
                "in total|total(?:ling|s|ing)?|overall|altogether|in all|combined",
                "全文|全篇|全书|整篇|总共|合计|共计|共|总计?(?!结)",
            ),
            _kind("per", "each|every|per|apiece", "每|各|分别|平均"),
            _kind("part", f"(?:{_PARTS})s?", "[段章节页]"),
            _kind("whole", f"(?:{_TEXTS})s?|stories", "文章|作文|论文|报告|小说|故事|正文"),
            _kind("adj", "english|chinese|more|additional|full|extra", "个|中文|英[文语]"),
            _kind("prep", "in|into|as|for|with|at|by"),
            _kind(
                "verb",
                "writ(?:e|ten|ing)|make|use|using|give|keep|kept|submit|hand|turn|send|reach|hit|produce|deliver",
                "撰?写|要求|用",
            ),
            _kind(
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
    )
)
"""One word or sign of a statement. `length_statements` says what the kinds mean.

A kind that is listed earlier wins: words that contain a number or another word come first.
"""
SPAN_AFTER = re.compile("(?: ?(?:个?字|个?词|words?))? ?之?间")
"""Follows the second of two numbers that "and" joins: "800和1000字之间"."""
TOPIC = re.compile("about|around|some|over|under|above|below|past|beyond|within")
"""Directly after a unit these are prepositions: "2000 words about 1848"."""
YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
OF_PAGES = re.compile(" ?-?(?:page|side|页)")
OUT_OF = re.compile(r"从 ?$|由 ?$")
"""The length that a text had: "从500字扩写到1000字"."""
POINTS = re.compile(r"\d+(?:\.\d{3})+")
DESIGNATION = re.compile(
    r"(?:\b(?:chapter|part|grade|level|unit|section|question|task|topic|week|day|page|volume|book|act|scene|step|number|no\.|"
    r"version|class|year|age|exercise)|[第级题]) ?$"
)
"""Before "3 500 words" these say that the 3 is a number of its own."""
CHANGED_FROM = re.compile(
    r"\b(?:expand|extend|increas|enlarg|lengthen|grow|stretch|reduc|cut|shorten|condens|trim|compress|bring|turn|take|go|"
    r"chang|edit|revis|rewrit)[a-z]*\b[^.!?\n]{0,40}\bfrom $"
)

_FEW = r"\b(?:\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|several|multiple|a few)"
_MANY = r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|several|multiple|separate|a few|both)"
_MANY_TEXTS = (
    r"(?:essays|articles|stories|posts|versions|emails|reviews|blogs|letters|poems|speeches|reports|summaries|texts|papers|"
    r"columns|scripts|descriptions|answers|responses|pieces|drafts)"
)
PER_PART_BEFORE = re.compile(
    r"\b(?:each|every|per)\b[^,.]{0,45}$|(?:每|各|分别|平均)[^,。]{0,14}$|"
    rf"{_MANY} (?:[a-z]+ ){{0,2}}(?:{_MANY_TEXTS}|paragraphs|chapters|sections|parts|scenes)\b[^,.]{{0,20}}$|"
    rf"{_MANY} (?:[a-z]+ ){{0,2}}{_MANY_TEXTS} ?[,(:;-] ?$|(?<!\d){_FEW} $|\bsome $|"
    r"(?<!第)[二两三四五六七八九十\d]个?(?:篇|段|章|节|部分|版本)[^,。]{0,6}$|"
    r"(?<!第)[二两三四五六七八九十\d]个?(?:篇|版本)[^,。]{0,6}[,(:;]$"
)
PER_PART_AFTER = re.compile(
    r"[ )(的]*(?:each\b|apiece|per\b|every\b|(?:for|in|on|to|about|of) (?:each|every)\b|an? (?:day|week|month|minute|hour|chapter|"
    r"page|section|paragraph)\b|daily|/ ?(?:(?:day|page|chapter|min(?:ute)?)\b(?!\.? ?\d)|[章天页段分])|每|一[章段天节页])"
)
_NOT_OF_TEXTS = rf"(?:on|about|of|in|for|to|and|or|with|from|that|which|comparing|using|by|the|{_TEXTS})\b"
MANY_OF_BEFORE = re.compile(rf"(?<!\d){_FEW} (?:[a-z-]+ ){{0,2}}[a-z]{{2,}}s of\b[^,.;]{{0,25}}$")
MANY_AFTER = re.compile(rf"[ -]?(?:(?!{_NOT_OF_TEXTS})[a-z-]+ ){{0,2}}{_MANY_TEXTS}\b")
"""The length of each of several texts, unless an article comes before: "500-word essays"."""
ARTICLE_BEFORE = re.compile(r"\b(?:an?|one|the|this)\b[^,.;]{0,20}$")
TOTAL_BEFORE = re.compile(
    r"(?:\btotal|overall|altogether|in all|\b(?:whole|entire)|全文|全篇|全书|整篇|总(?!结)|合计|共)[^,.。]{0,25}$"
)
TOTAL_AFTER = re.compile(
    r"[ ,(]*(?:in total|total|overall|altogether|in all|combined)\b(?! (?:length|words?|count|number|text|size|of|should|must|is)\b)"
)
_PART = (
    r"(?:introduction|intro|conclusion|abstract|opening|ending|title|headline|body(?! of the)|section|paragraph|chapter|scene|stanza|part|"
    r"caption|prologue|epilogue)"
)
_HAN_PART = "(?:开头|中间|结尾|摘要|引言|导语|前言|首段|末段|标题|正文部分)"
_WRITE = r"(?:writ(?:e|ing)|draft|compose|create|generate|produce|give|need|craft|continue|prepare|develop|make|provide|finish)"
PART_BEFORE = re.compile(
    rf"(?:\b(?P<part>{_PART})\b(?:(?!\b{_WRITE}\b)[^,.]){{0,25}}|(?P<han>{_HAN_PART})[^,。写拟]{{0,8}})$"
)
PART_AFTER = re.compile(rf"[- ]?{_PART}\b|的?{_HAN_PART}")
PART_LATER = re.compile(rf" (?:for|in|on) (?:the|an?|your|my) (?P<part>{_PART})\b")
"""A count next to these words is the length of a part."""
PART_ASKED = re.compile(
    rf"\b{_WRITE}\b(?: (?!with\b|including\b|containing\b|whose\b|where\b|{_WRITE}\b)[a-z0-9-]+){{0,8}}? (?P<part>{_PART})\b|"
    rf"(?:^|[.!?:\n] ?)(?:an?|one) (?:(?!{_PART})[a-z]+ ){{0,3}}(?P<head>{_PART})\b|"
    rf"(?:写|拟|生成|创作)[^,。;\n]{{0,12}}?(?P<han>{_HAN_PART})"
)
"""A part that the request asks for: "write the introduction of my thesis"."""
ABOUT_A_TEXT = re.compile(
    r"\b(?:ideas?|tips?|advice|outlines?|titles?|topics?|suggestions|headlines?|feedback|thesis statements?) "
    r"(?:for|on|of|about|to|when|while)(?: writ(?:e|ing))?(?: (?:an?|my|the|this|another))? $|"
    r"\bhow (?:do|can|should|would|to)(?: (?:i|you|we|one))?(?: best)? (?:write|structure|start|plan|begin|finish|organi[sz]e)"
    r"(?: (?:an?|my|the|this))? $|\bhow (?:much|many|long)\b[^.?!]{0,40}$|"
    r"\bshould (?:an?|my|the)\b[^.?!]{0,30} be $|(?:如何|怎么|怎样)(?:才能)?(?:写|撰写|构思|完成)[好出]?(?:一?篇)?$"
)
"""The count after these words is of a text that the request does not ask for: "an outline for a 2000-word essay"."""
NO_TEXT_AFTER = re.compile(
    rf"[ -]?(?:{_TEXTS})s? (?:outlines?|ideas?|topics?|prompts?|titles?|plans?)\b|"
    r"的?(?:作文|论文|文章|小说|报告)的?(?:大纲|提纲|思路|框架|题目)"
)
CONSEQUENCE_AFTER = re.compile(
    r"(?: (?:will|would|won't|is|are|may|can|cannot|gets?|not|be|get|automatically))* (?:reject|penali|disqualif|deduct|ignor|"
    r"unaccept|(?:not|n't)(?: be)? (?:accept|read|allow|grad|mark|count|consider)|fail|los[et]|too (?:long|short)|cut off|truncat)|"
    r",?(?:的|者|部分|时)?(?:都|均|将|会|就|则|要|者)*(?:扣|不予|不给|不得分|不计|不收|不合格|不及格|不通过|作废|无效|超时|罚|拒|零分|"
    r"0分|重写|太[长短])"
)
"""After a bound these say what happens beyond it: "超过1000字扣分" is a maximum."""
GIVEN_BEFORE = re.compile(
    r"(?:\b(?:th(?:is|ese|ose|at)|my|his|her|our|their|its|following|(?:the )?(?:above|below)|attached|existing|original|last|"
    r"top|new|common|key|difficult|hard|random|important|other|unique|different|basic|frequent|list|list of|"
    r"vocabulary of|of these|learn|know|memori[sz]e|read|name|year|page|already|currently(?: at)?|there are|"
    r"(?:increased?|decreased?|reduced?|expand(?:ed)?|extend(?:ed)?|shorten(?:ed)?|cut)(?: [a-z]+){0,3} by|"
    r"(?:written|wrote|i have|i've|we have|i got)(?: (?:already|only|just|about|around|an?))?) ?|"
    r"(?:这|那|该|此)(?:一?[篇段个份本些])? ?|(?:下面|以下|上面|上述|前面|下列)(?:的|这[篇段])? ?|原文|我的|"
    r"(?:写了|有|写的)(?:一?[篇段个份]|大?约|大概|快)? ?|背|记住?|认识|掌握|学会?|列出|常用的?|阅读|读完?)$"
)
"""A plain count after these words is the length of an existing text, or a number of words to list or learn."""
STATED_OF_GIVEN = re.compile(
    r"(?:\b(?:th(?:is|ese|ose|at)|my|our|his|her|their|(?:the )?(?:following|attached|above|below|original))(?: [a-z-]+){0,3}?|"
    r"\bthe (?:novel|book|manuscript|text|document|file|transcript|original|source|article|paper|passage|speech)) "
    r"(?:has|had|contains|contained|is|was|were|runs|ran)(?: (?:already|now|currently|a total of))* ?$|"
    r"\b(?:i|we|they)(?: have|'ve)(?: (?:already|now|written|got|only))*(?: (?:an?|about|around))* ?$|"
    r"\b(?:typically|usually|generally|normally|on average) (?:has|have|is|are|contains?|runs?)(?: [a-z]+)? ?$|"
    r"(?:这|那|该|此|原|(?:我|你|他|她|它|们)的|现有|目前|现在|已经?|附件|上面|下面|下列|上述)[^,。要需应须得求写]{0,8}(?:有|共|达|长达|是|写了|达到)了? ?$|"
    r"》(?:全书|全文|原文|一书|这本书)?(?:共|有|约|长达|总共)+计? ?$|"
    r"(?:这|那|该|此|原|我的)[^,。要需应须得求写不]{0,8}(?:超过|超出|多达) ?$|"
    r"\b(?:th(?:is|at)|my|our|his|her|their|the)(?: [a-z-]+){1,2} (?:exceeds|exceeded|surpasses|goes over|went over) ?$"
)
"""Any count after these words, a bound as well, is the length of an existing text."""
REQUESTED = re.compile(r"\b(?:ensure|make sure|so that|so|until|such that|want|if|for)\b[^.!?]{0,40}$")
NOT_A_LENGTH_AFTER = re.compile(
    r" ?(?:were\b|documents|docs|files|list\b|lists\b|bank\b|problems?\b|search\b|puzzles?\b|vocab|that (?:start|begin|end|rhyme|"
    r"contain|describe|mean|are|relate|can)|which|starting|beginning|ending|related|rhym|associated|containing|"
    r"(?:and|or) phrases|from (?:this|the|a)\b|with (?:the letter|their|definitions|meanings|translations)|"
    r"to (?:learn|know|memori[sz]e)|look\b|(?:i|you) (?:should|don't|need|can)|for (?:beginners|ielts|toefl|gre|sat)\b|/ ?min(?:ute)?\b(?!\.? ?\d)|wpm)"
)
