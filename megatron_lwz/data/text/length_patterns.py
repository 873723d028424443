"""The regular expressions of `length_request`, for text in lower case and half width."""

from __future__ import annotations

import re
from typing import Literal

from megatron_lwz.data.text.numerals import NUMBER

Bound = Literal["at least", "at most"]

COUNT = re.compile(
    rf"(?<!\d[.,])(?<![0-9a-z$€£¥#几上好第])(?<!(?<![字词])数)(?P<first>{NUMBER})"
    rf"(?:(?: ?words?| ?个?字)? ?(?P<joint>-+|~+|(?:- )?to|or|through|and|到|至|或|和|与) ?(?P<second>(?<![0-9a-z]){NUMBER}))?"
)
UNIT = re.compile(
    r"(?P<between>[ -]?(?:(?:\+|plus|or more|or less|or fewer|max(?:imum)?|min(?:imum)?|more|additional|余|多|来)[ -]?)?"
    r"(?:\([^()]{1,30}\)[ -]?)?(?:(?:english|chinese|total|full)[ -])?个?)"
    r"(?P<unit>words?(?![a-z])|char(?:acter)?s?(?![a-z])|英[文语]单词|单词|中文字符?|汉字|字符(?!集)|"
    r"字(?![节母体典幕经眼库形帖型诀令谜段符])|词(?![汇语组条性典库]))"
)
LABEL = re.compile(
    r"(?:(?P<name>word)[ -]?(?:count|limit|length|total|target|range|requirement|goal|minimum|maximum)s?|number of words|"
    r"length in words|\bwords? ?(?=[:=])|字数|词数)(?P<rest>[^.。!?\n]{0,40})$"
)
"""Label that makes a number without a unit a length. `rest` must hold only filler and comparisons (RESTS)."""
OTHER_UNIT = re.compile(
    r" ?(?:pages?|paragraphs?|chapters?|sentences?|%|dollars?|minutes?|tokens?|[年页段章分元句行岁万])"
)

_TOKEN = (
    r"[ :=(\"'~≈\[-]|\b(?:an?|of|to|the|be|is|are|at|by|in|about|around|roughly|approx(?:imately|\.)?|some|circa|ca\.?|"
    r"nearly|total|words?|count|length|requirement|target|range|between|from|should|must|it|exactly|least)\b|"
    r"字数|篇幅|长度|要求|控制|保持|在|为|是|大?约|大概|大致|差不多|将?近|接近|需要?|应该?当?|要|达到?|写|共|有|到|于|了|的|介于|整整"
)
_FILL = rf"(?:{_TOKEN})*+"
_MORE = (
    r"more than|(?<!the )\babove|\bover|exceed(?:s|ing)?|longer than|greater than|beyond|surpass(?:es|ing)?|>|"
    r"超过|超出|多于|大于|高于|长于|逾"
)
_LESS = r"less than|fewer than|shorter than|lower than|\bunder|(?<!the )\bbelow|<|少于|低于|小于|短于"
_LEAST = r"at (?:the )?least|\bminimum|\bmin\b\.?|no less|>=|≥|upwards? of|至少|最少|起码|最低|不下于?|下限"
_MOST = (
    r"at (?:the )?most|\bmaximum|\bmax\b\.?|\bup to|\bwithin|limit(?:ed)?|\bcap(?:ped)?\b|<=|≤|"
    r"至多|最多|最大|最长|最高|上限|限制?|不到|不足"
)
_NOT = (
    r"(?:\bno|\bnot|n't|\bnever|\bcannot|\bdont|\bwithout)(?: (?:be|to|any|go|going|get|have|contain|use|write|run|much))* ?|"
    r"(?:不|勿|别|未)(?:得|能|要|可以?|应该?当?|宜|准|许|允许|会|需要?|必)*"
)

BEFORE: tuple[tuple[re.Pattern[str], Bound, Bound | None], ...] = (
    (re.compile(rf"(?:{_LEAST}){_FILL}$"), "at least", None),
    (re.compile(rf"(?:{_MOST}){_FILL}$"), "at most", None),
    (re.compile(rf"(?:{_MORE}){_FILL}$"), "at least", "at most"),
    (re.compile(rf"(?:{_LESS}){_FILL}$"), "at most", "at least"),
)
"""(text before the number, the bound it states, the bound it states after a "not")."""
NEGATION = re.compile(rf"(?:{_NOT})$")
FILLER = re.compile(rf"(?<![a-z]){_FILL}$")
RESTS = re.compile(rf"(?:{_NOT}|{_MORE}|{_LESS}|{_LEAST}|{_MOST}|{_TOKEN})*+")

AT_LEAST_AFTER = re.compile(
    r"[ ,(]*(?:\+|plus\b|or (?:more|longer|above|over)|(?:and|or) (?:up|above|over)\b|min(?:imum)?\b|at (?:a )?minimum|"
    r"at (?:the )?least|余|多|及?以上|或以上|起步?(?!来)|往上|打底|或更多)"
)
AT_MOST_AFTER = re.compile(
    r"[ ,(]*(?:or (?:less|fewer|under|below|shorter)|(?:and|or) under\b|max(?:imum)?\b|at (?:the )?most|at (?:a )?maximum|"
    r"tops\b|limit|cap\b|(?:之|以)?内|及?以下|或以下|或更少|封顶|为限|为上限)"
)
PER_PART_BEFORE = re.compile(
    r"\b(?:each|every|per)\b[^,.]{0,45}$|(?:每|各|分别|平均)[^,。]{0,14}$|"
    r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|several|multiple|separate) (?:[a-z]+ ){0,2}"
    r"(?:essays|articles|stories|posts|paragraphs|chapters|sections|versions|emails|reviews|parts|blogs|letters|scenes)\b[^,.]{0,20}$|"
    r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|several|multiple|a few|some) $|"
    r"(?<!第)[二两三四五六七八九十\d]个?(?:篇|段|章|节|部分|版本)[^,。]{0,6}$"
)
PER_PART_AFTER = re.compile(
    r"[ )(的]*(?:each\b|apiece|per\b|every\b|(?:for|in) (?:each|every)\b|an? (?:day|week|month|minute|hour|chapter|page|"
    r"section|paragraph)\b|daily|/ ?(?:day|min|page|chapter|[章天页段分])|每|一[章段天节页])"
)
TOTAL_BEFORE = re.compile(r"(?:\btotal|overall|altogether|in all|全文|全篇|全书|整篇|总(?!结)|合计)[^,.。]{0,25}$")
TOTAL_AFTER = re.compile(r"[ ,(]*(?:in total|total|overall|altogether|in all)\b")
PART_BEFORE = re.compile(
    r"(?:\b(?:introduction|intro|conclusion|abstract|opening|ending|title)\b[^,.]{0,25}|"
    r"(?:开头|中间|结尾|摘要|引言|导语|前言|首段|末段|标题)[^,。]{0,8})$"
)
PART_AFTER = re.compile(
    r"[- ]?(?:introduction|intro|conclusion|abstract|opening|title)\b|的?(?:开头|结尾|摘要|引言|导语|前言|标题)"
)
"""A count next to these words is the length of a part, if the request also has a count without them."""
GIVEN_BEFORE = re.compile(
    r"(?:\b(?:th(?:is|ese|ose|at)|my|his|her|our|their|its|following|(?:the )?(?:above|below)|attached|existing|original|last|"
    r"top|new|common|key|difficult|hard|random|important|other|unique|different|basic|frequent|list|list of|"
    r"vocabulary of|of these|learn|know|memori[sz]e|read|name|year|page|already|currently(?: at)?|there are|"
    r"(?:increased?|decreased?|reduced?|expand(?:ed)?|extend(?:ed)?|shorten(?:ed)?|cut) by|"
    r"(?:written|wrote|i have|i've|we have|i got)(?: (?:already|only|just|about|around|an?))?) ?|"
    r"(?:这|那|该|此)(?:一?[篇段个份本些])? ?|(?:下面|以下|上面|上述|前面|下列)(?:的|这[篇段])? ?|原文|我的|"
    r"(?:写了|有|写的)(?:一?[篇段个份]|大?约|大概|快)? ?|背|记住?|认识|掌握|学会?|列出|常用的?|阅读|读完?)$"
)
"""A plain count after these words is the length of an existing text, or a number of words to list or learn."""
VAGUE = re.compile(r"\b(?:several|few|many|couple(?: of)?) (?:hundred|thousand)$|[几数] ?[百千万]$")
NOT_A_LENGTH_AFTER = re.compile(
    r" ?(?:were\b|documents|docs|files|list\b|lists\b|bank\b|problems?\b|search\b|puzzles?\b|vocab|that (?:start|begin|end|rhyme|"
    r"contain|describe|mean|are|relate|can)|which|starting|beginning|ending|related|rhym|associated|containing|"
    r"(?:and|or) phrases|from (?:this|the|a)\b|with (?:the letter|their|definitions|meanings|translations)|"
    r"to (?:learn|know|memori[sz]e)|(?:i|you) (?:should|don't|need|can)|for (?:beginners|ielts|toefl|gre|sat)\b|/ ?min|wpm)"
)
