"""What synthesis and attack may build on, and what they make that is thrown away: nothing that sexualises minors."""

import re
from collections.abc import Iterable, Sequence

from guardrail.deobfuscation import readings
from guardrail.records import Record
from guardrail.taxonomy import may_generate

_MINORS = re.compile(
    r"\b(child(ren|hood|s|like|ish)?|kid(s|do|dos|die|dies|dy)?|minors?|underaged?|tweens?"
    r"|(pre)?teen(s|age|aged|ager|agers|y)?|(pre-?|pre )?pubescents?|prepuber(al|tal|ty)|lolitas?"
    r"|toddlers?|infants?|newborns?|bab(y|ies)|juveniles?|adolescen(ts?|ce)|youths?|youngsters?|young(er)? ones?|lads?"
    r"|(school)?(girl|boy)s?|(step|grand|god)?(daughter|son|child)(ren|s)?|(step|half)?(sister|brother|sibling)s?"
    r"|nieces?|nephews?|pupils?|preschoolers?|kindergart\w+|\w+[ -]?graders?|\w*schoolers?|freshm[ae]n"
    r"|(high|middle|junior|elementary|primary|secondary|grade)[ -]school\w*|(under|below|younger than)( the age of)?"
    r"[ -](1[0-8]|[1-9]|ten|eleven|twelve|\w+teen))\b"
)
#: "aged 9", "15-year-old", "fifteen yo", "14 y.o.", "14f": every way to write an age below 18.
_AGE = r"(1[0-7]|0?[0-9]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w{3,5}teen)"
_UNDER_18 = re.compile(
    rf"\b{_AGE}[ -]?(years?|yrs?|yo|y ?/ ?o|y\. ?o|months?)\b"
    rf"|(\b(aged?|age of|turn(s|ed|ing)|is|am|m|are|only|just)|'(s|re))[ :]+{_AGE}\b"
    rf"(?!\s*(%|percent|am|pm|of|minutes?|hours?|days?|weeks?|people|men|women|adults?))|\b(1[0-7]|[0-9])[mf]\b"
)
_SEX = re.compile(
    r"\b(sex|sexy|sexual\w*|sext(s|ing)?|porn\w*|nud(e|es|ity)|naked|erotic\w*|groom(s|ed|ing|er)?|molest\w*|predator\w*"
    r"|fetish\w*|lewd|incest|rap(e|es|ed|ing|ist|ists)|seduc\w*|prostitut\w*|explicit|sensual|intercourse|masturbat\w*"
    r"|hentai|smut\w*|nsfw|fuck(s|ed|ing)? (an?|the|my|your|his|her|this|that)|blowjobs?|orgasm\w*|genital\w*"
    r"|penis\w*|vagina\w*|undress\w*|upskirt\w*|horny|strip(s|ped|ping)?|topless|aroused?|arousing"
    r"|touch\w* inappropriate\w*|inappropriate\w* touch\w*)\b"
)
_BOTH = re.compile(r"\b(csam|csem|loli(s|con)?|shota(con)?|pa?edo(s|phil\w*)?|jailbait)\b|ロリ|ショタ|萝莉|正太")
#: In languages that models write well, too: German, Spanish, Portuguese, French, Italian, Russian, Chinese, Japanese.
_MINORS_ELSEWHERE = re.compile(
    r"\b(kinder\w*|kindes|(ein(em)?|das) kind|m[äa]dchen|minderj[äa]hrig\w*|sch[üu]ler\w*|jugendlich\w*|jungs?|jungen"
    r"|tochter|sohn|ni[ñn][oa]s?|menor(es)?|adolescentes?|chic[oa]s?|hij[oa]s?|crian[çc]as?|menin[oa]s?|filh[oa]s?"
    r"|enfants?|mineure?s?|fill(e|ette)s?|gar[çc]ons?|coll[ée]gien\w*|lyc[ée]en\w*|bambin[oaie]|minorenn[ei]"
    r"|ragazzin[oaie]|figli[oae]?)\b|реб[её]н|\bдет(и|ей|ск)|девоч|мальчи|несовершеннолетн|подрост|школьни"
    r"|儿童|兒童|孩子|未成年|女孩|男孩|少女|少年|幼女|小学生|中学生|初中|高中生|子供|子ども"
)
#: The same ages there: figures, and words from seven to seventeen.
_UNDER_18_ELSEWHERE = re.compile(
    r"\b(1[0-7]|0?[0-9]|sieben|acht|neun|zehn|elf|zw[öo]lf|(drei|vier|f[üu]nf|sech|sieb)zehn|siete|ocho|nueve|diez|once"
    r"|doce|trece|catorce|quince|dieciséis|diecisiete|sete|oito|nove|dez|onze|doze|treze|quatorze|catorze|quinze"
    r"|dezesseis|dezessete|sept|huit|neuf|dix|douze|treize|seize|dix-sept|sette|otto|dieci|undici|dodici|tredici"
    r"|quattordici|quindici|sedici|diciassette)[ -]?(jahren?|j[äa]hrig\w*|años?|anos?|ans?|anni)\b"
    r"|\b(1[0-7]|0?[0-9])[ -]?(лет|летн\w*|год(а|ик\w*)?)\b|(?<!\d)(1[0-7]|0?[0-9]) ?[岁歲歳才]"
    r"|(?<![二三四五六七八九十])(十[一二三四五六七]?|[一二三四五六七八九])[岁歲歳才]"
)
_SEX_ELSEWHERE = re.compile(
    r"\b(sex\w*|nackt\w*|erot\w*|porno?\w*|desnud\w*|er[óo]tic\w*|nu[ae]?s?|pelad[oa]s?|[ée]rotique\w*|sesso|sessual\w*"
    r"|nud[oaie])\b|секс|порно|обнаж|\bгол(ая|ый|ые|ую)\b|эроти|色情|性爱|性愛|性交|性行为|性行為|性的|裸|做爱|做愛"
    r"|セックス|エロ|ポルノ"
)


def generation_seeds(records: Iterable[Record]) -> list[Record]:
    """Return the records that synthesis and attack may build on: requests whose kind may be generated.

    A record with a response is none: its label is that of both together, and says nothing of another request.
    Content that sexualises minors is classified, never generated: a paraphrase, a frame or an RL completion of such a
    seed would be new material of that kind, whatever it is made for. So every record with such a category goes, and,
    because many sets give no categories, every record whose words speak of minors and of sex, unsafe or not. The word
    lists are of nine languages and meant to drop too much rather than too little.
    """
    return [
        record
        for record in records
        if not record["response"] and may_generate(record["categories"]) and not may_sexualise_minors(record["text"])
    ]


def without(excluded: Sequence[str], seeds: Sequence[Record]) -> list[Record]:
    """Return the seeds that have none of the excluded harm categories."""
    return [record for record in seeds if not set(excluded).intersection(record["categories"] or ())]


def may_sexualise_minors(text: str) -> bool:
    """Whether a text, or what it can be read as, speaks of minors and of sex; what was generated and does goes."""
    return any(map(_speaks_of_both, readings(text)))


def _speaks_of_both(said: str) -> bool:
    if _BOTH.search(said):
        return True
    english = bool(_SEX.search(said))
    minors = [_UNDER_18, _MINORS_ELSEWHERE, _UNDER_18_ELSEWHERE] + ([_MINORS] if english else [])
    return (english or bool(_SEX_ELSEWHERE.search(said))) and any(each.search(said) for each in minors)
