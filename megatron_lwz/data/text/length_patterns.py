"""What the words around a number say about it: expressions for normalized text, lower case and half width."""

from __future__ import annotations

import re

from megatron_lwz.data.text.length_words import TEXTS

SMALLEST = 50
"""Smallest count that is taken as a length. Smaller ones are of titles, slogans and word lists rather than of texts."""

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
    r"\b(?:expand|extend|increas|enlarg|lengthen|reduc|cut|shorten|condens|trim|compress|bring)[a-z]*\b[^.,;!?\n]{0,30}\bfrom $"
)

_TOPIC_TEXT = (
    rf"\b(?:about|on|of|to|for|from|in|finds|found|reads) (?:an?|the|my|this|our|your|his|her) "
    rf"(?:[a-z-]+ ){{0,2}}(?:{TEXTS}|book|manuscript|diary)\b"
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
    rf"{_MANY} (?:[a-z]+ ){{0,2}}{_MANY_TEXTS} ?[,(:;-] ?$|"
    r"(?<!第)[二两三四五六七八九十\d]个?(?:篇|段|章|节|部分|版本)[^,。]{0,6}$|"
    r"(?<!第)[二两三四五六七八九十\d]个?(?:篇|版本)[^,。]{0,6}[,(:;]$|[日周月](?:更|均|产)[^,。]{0,4}$"
)
PER_PART_AFTER = re.compile(
    r"[ )(的]*(?:each\b|apiece|per\b|every\b|(?:for|in|on|to|about|of) (?:each|every)\b|an? (?:day|week|month|minute|hour|chapter|"
    r"page|section|paragraph)\b|daily|/ ?(?:(?:day|page|chapter|min(?:ute)?)\b(?!\.? ?\d)|[章天页段分])|每|一[章段天节页])"
)
_NOT_OF_TEXTS = rf"(?:on|about|of|in|for|to|and|or|with|from|that|which|comparing|using|by|the|{TEXTS})\b"
MANY_OF_BEFORE = re.compile(rf"(?<!\d){_FEW} (?:(?:[a-z-]+ ){{0,2}}[a-z]{{2,}}s of\b[^,.;]{{0,25}})?$")
"""Directly before the number: "10 tweets of", "3 500-word essays"."""
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
    r"(?:introduction|intro|conclusion|abstract|opening|ending|title|headline|body(?! of the)|section|paragraph|chapter|scene|"
    r"stanza|part|caption|prologue|epilogue)"
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
    r"\bshould (?:an?|my|the)\b[^.?!]{0,30} be $|"
    r"^ ?(?:(?:what|how|why|when|where) )?(?:is|are|does|do|can|would|will|should|makes) an?(?: (?:typical|good|normal))? $|"
    r"(?:如何|怎么|怎样)(?:才能)?(?:写|撰写|构思|完成)[好出]?(?:一?篇)?$|"
    rf"\b(?:{TEXTS})s? (?:about|on|of|describing|featuring|concerning) (?:an?|the|his|her|their) $|"
    r"\b(?:finds|found|discover(?:s|ed)|receive[sd]|inherit(?:s|ed)|steals|stole|reads|writes|wrote|loses|lost|publishe[sd]|"
    r"translate[sd]|submit(?:s|ted)) (?:an?|the|his|her|their) $|"
    r"\b(?:learn(?:s|ed|t|ing)?|memori[sz](?:es?|ed|ing)|kn(?:ows?|own|owing|ew)|master(?:s|ed|ing)?|taught|teach(?:es|ing)?)"
    r"(?: (?:me|you|the|my|these|them|him|her))? ?$|"
    r"\b(?:add|insert|remove|delete)(?:ing)?(?: (?:another|an (?:extra|additional)))? ?$|"
    r"(?:增加|添加|增添|减少|补充|多写|少写)了? ?$"
)
"""The count after these words is of no text that the request asks for: "an outline for a 2000-word essay", "a story about a
3000-word manuscript", words that are learned, a change of an existing text."""
NO_TEXT_AFTER = re.compile(
    rf"[ -]?(?:{TEXTS})s? (?:outlines?|ideas?|topics?|prompts?|titles?|plans?)\b|"
    r"的?(?:作文|论文|文章|小说|报告)(?:的?(?:大纲|提纲|思路|框架|题目)|[^,。写]{0,6}写?(?:几|多少)|[^,。写]{0,6}(?:什么样|多长|多久))"
)
CONSEQUENCE_AFTER = re.compile(
    r"(?: (?:will|would|won't|is|are|may|can|cannot|gets?|not|be|get|automatically))* (?:reject|penali|disqualif|deduct|ignor|"
    r"unaccept|(?:not|n't)(?: be)? (?:accept|read|allow|grad|mark|count|consider)|fail|los[et]|too (?:long|short)|cut off|truncat)|"
    r",?的?(?:作文|文章|论文|稿件|者|部分|时)?(?:都|均|将|会|就|则|要|者)*(?:扣|不予|不给|不得分|不计|不收|不合格|不及格|不通过|作废|无效|超时|罚|拒|零分|"
    r"0分|重写|太[长短])"
)
"""After a bound these say what happens beyond it: "超过1000字扣分" is a maximum."""
GIVEN_BEFORE = re.compile(
    r"(?:\b(?:th(?:is|ese|ose|at)|my|his|her|our|their|its|following|(?:the )?(?:above|below)|attached|existing|original|last|"
    r"top|new|common|key|difficult|hard|random|important|other|unique|different|basic|frequent|list|list of|"
    r"vocabulary of|of these|add|insert|remove|delete|learn|know|memori[sz]e|read|name|year|page|already|currently(?: at)?|there are|"
    r"(?:increased?|decreased?|reduced?|expand(?:ed)?|extend(?:ed)?|shorten(?:ed)?|cut)(?: [a-z]+){0,3} by|"
    r"(?:written|wrote|i have|i've|we have|i got)(?: (?:already|only|just|about|around|an?))?) ?|"
    r"(?:这|那|该|此)(?:一?[篇段个份本些])? ?|(?:下面|以下|上面|上述|前面|下列)(?:的|这[篇段])? ?|原文|我的|"
    r"(?:写了|有|写的)(?:一?[篇段个份]|大?约|大概|快)? ?|背|记住?|认识|掌握|学会?|列出|常用的?|阅读|读完?|"
    r"收[录集][的了]?|(?:缩减|删[减去掉除]|压缩|精简)了?)$"
)
"""A plain count after these words is the length of an existing text, or a number of words to list or learn."""
STATED_OF_GIVEN = re.compile(
    r"(?:\b(?:th(?:is|ese|ose|at)|my|our|his|her|their|(?:the )?(?:following|attached|above|below|original))(?: [a-z-]+){0,3}?|"
    r"\bthe (?:novel|book|manuscript|text|document|file|transcript|original|source|article|paper|passage|speech)) "
    r"(?:has|had|contains|contained|is|was|were|runs|ran)(?: (?:already|now|currently|a total of))* ?$|"
    r"\b(?:it|the(?: [a-z-]+){1,2}) (?:had|was|ran|came out)(?: (?:already|at|to|a total of))* ?$|"
    r"\b(?:is|are|was) (?:this|that|it|my [a-z]+)(?: already)? ?$|"
    r"\b(?:typically|usually|generally|normally|on average) (?:has|have|is|are|contains?|runs?)(?: [a-z]+)? ?$|"
    r"(?:这|那|该|此|原|(?:我|你|他|她|它|们)的|现有|目前|现在|已经?|附件|上面|下面|下列|上述)"
    r"[^,。要需应须得求写]{0,8}(?:有|共|达|长达|是|写了|达到)了? ?$|"
    r"》(?:全书|全文|原文|一书|这本书)?(?:共|有|约|长达|总共)+计? ?$|"
    r"(?:这|那|该|此|原|我的)[^,。要需应须得求写不]{0,8}(?:超过|超出|多达) ?$|"
    r"\b(?:th(?:is|at)|my|our|his|her|their|the)(?: [a-z-]+){1,2} (?:exceeds|exceeded|surpasses|goes over|went over) ?$"
)
"""Any count after these words, a bound as well, is the length of an existing text."""
ASKED_THAT = re.compile(
    rf"(?:^ ?|\b{_WRITE}\b(?: (?:me|us|up|out))? )(?:an?|one)\b(?:(?!{_TOPIC_TEXT})[^.!?;\n]){{1,130}}"
    r" (?:that|which)(?: (?:also|has to be|have to be|only))? (?:is|has|contains|runs)(?: (?:a total of|only|exactly))* ?$"
)
"""Before a count, "that" is of the text to write: "write a story about a girl that has". Of a given one: "that has"."""
QUOTED_BEFORE = re.compile(
    rf"\b(?:{TEXTS}|titled?|entitled|called|named|headline|topic|video|book|about|on|for):? ?[\"“][^\"“”\n]{{3,}}$|《[^》\n]{{2,}}$"
)
QUOTED_AFTER = re.compile(r"[^\"“”\n《》]{0,60}[\"”》]")
"""Around a count in a title: "write a post: "How I wrote 1000 words"."."""
OUTLINE_ASKED = re.compile(
    rf"\b{_WRITE}\b(?: [a-z]+){{0,4}} (?P<part>outline|synopsis)\b|(?:写|拟|列|生成|设计|创作)[^,。;\n]{{0,12}}?(?P<han>[大提细]纲)"
)
OUTLINED = re.compile(
    r"\b(?:novel|book|story|essay|thesis|paper)(?: itself)? (?:will|should|is|has|would|must)\b[^,.]{0,20}$|"
    r"(?:全书|全文|整[本部篇]书?|小说|正文|总字数|论文)(?:(?![大提细]纲)[^,。]){0,6}$"
)
"""Where an outline is asked for, a count after these words is of the text that it is for."""
OWNED = re.compile(r"\b(?:i|we|they)(?: have|'ve)(?: (?:already|now|written|got|only|an?|about|around))* ?$")
"""Likewise, unless the count is a maximum: "we have at most 500 words" for a text to write."""
REQUESTED = re.compile(
    rf"\b(?:ensure|make sure|so that|so|until|such that|want|wish|if|for(?! (?:an?|my) (?:{TEXTS}|book)\b))\b[^.!?]{{0,40}}$"
)
NOT_A_LENGTH_AFTER = re.compile(
    r" ?(?:were\b|documents|docs|files|list\b|lists\b|bank\b|problems?\b|search\b|puzzles?\b|vocab|that (?:start|begin|end|rhyme|"
    r"contain|describe|mean|are|relate|can)|which|starting|beginning|ending|related|rhym|associated|containing|"
    r"(?:and|or) phrases|from (?:this|the|a)\b|with (?:the letter|their|definitions|meanings|translations)|"
    r"to (?:learn|know|memori[sz]e)|look\b|(?:i|you) (?:should|don't|need|can)|for (?:beginners|ielts|toefl|gre|sat)\b|"
    r"/ ?min(?:ute)?\b(?!\.? ?\d)|wpm)"
)
