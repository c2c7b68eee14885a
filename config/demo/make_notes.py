#!/usr/bin/env python3
"""Generate the SYNTHETIC clinical triage notes of the demo.

No real patient, hospital or record is behind any of these notes: every one is
put together at random, from a fixed seed, out of the phrases in this file. They
are for showing the software, not for learning or practising medicine.

A note's label is the service it should be routed to. A note holds either clear
complaints of its service, or one that two services share and a smaller hint;
around them stand vitals, history, negated findings and other details that say
nothing or point elsewhere, so that no single word decides.

Each of the three sites sees only four of the six services (every service is
seen at exactly two sites, in unequal numbers), while the test file holds all
six equally: a site that trains alone cannot get much above two thirds of it.

Writes `train.csv` (text,label,site) and `test.csv` (text,label); standard
library only, and the same output everywhere.
"""

import argparse
import csv
import random
from pathlib import Path

TEST_PER_LABEL = 50
SITES = {
    "north-hospital": {"cardiology": 140, "respiratory": 110, "neurology": 80, "gastroenterology": 50},
    "river-clinic": {"neurology": 70, "gastroenterology": 80, "orthopaedics": 40, "dermatology": 30},
    "south-hospital": {"orthopaedics": 110, "dermatology": 100, "cardiology": 30, "respiratory": 60},
}

# Complaints that name their service clearly.
CLEAR = {
    "cardiology": [
        "crushing central chest pain going down the left arm", "palpitations and a racing irregular heartbeat",
        "heart skipping beats at rest", "ankle swelling and breathless lying flat", "fainted while climbing stairs",
        "tight chest on walking uphill, eases with rest", "ecg shows atrial fibrillation", "new systolic murmur heard",
        "raised troponin with jaw pain", "wakes at night breathless, legs swollen",
        "pulse slow and irregular with near fainting", "known angina, needs the spray more often",
        "blood pressure very high with chest tightness", "pounding heart and sweating, pulse fast",
    ],
    "respiratory": [
        "productive cough with green sputum", "wheezing and needs the inhaler more often", "dry cough at night",
        "coughing up streaks of blood", "sharp chest pain on deep breath", "noisy breathing and low oxygen",
        "crackles at the {side} lung base", "copd flare up with more sputum", "short of breath with fever and cough",
        "asthma attack, peak flow halved", "breathless after a chest infection", "persistent cough and weight loss",
        "x-ray shows shadow on the {side} lung", "snores and stops breathing in sleep",
    ],
    "neurology": [
        "sudden weakness of the {side} arm and slurred speech", "throbbing headache with flashing lights",
        "first seizure witnessed by family", "facial droop on the {side} side", "numb {side} hand and blurred vision",
        "shaking hand at rest and slow walking", "worsening memory and confusion", "double vision and unsteady gait",
        "worst headache of life with stiff neck", "tingling in both feet spreading upwards",
        "lost speech for ten minutes, now normal", "migraine not settling with usual tablets",
        "jerking of the {side} leg with loss of awareness", "burning nerve pain across the face",
    ],
    "gastroenterology": [
        "burning pain behind the breastbone after meals", "vomiting blood since this morning", "black tarry stools",
        "watery diarrhoea with cramps", "yellow eyes and dark urine", "pain in the upper right abdomen after fatty food",
        "food sticking on swallowing", "bloating and constipation for weeks", "blood mixed with the stool",
        "nausea and upper abdominal pain", "abdomen swollen and tender", "acid reflux not helped by tablets",
        "loose stools at night and weight loss", "abnormal liver tests and itching",
    ],
    "orthopaedics": [
        "fell on the {side} wrist, swollen and deformed", "{side} knee locked and swollen after football",
        "hip pain and cannot bear weight after a fall", "{side} shoulder popped out, cannot lift the arm",
        "twisted {side} ankle, bony tenderness", "low back pain after lifting a box", "knee gives way on stairs",
        "x-ray shows fracture of the {side} forearm", "stiff hip, limping for months", "heel pain with first steps",
        "plaster too tight after a broken {side} leg", "tendon snapped at the back of the {side} heel",
        "finger bent back at work, joint unstable", "grinding pain in the {side} knee when kneeling",
    ],
    "dermatology": [
        "itchy red rash on both arms", "mole on the back has changed colour", "scaly plaques on the elbows",
        "blisters on the hands after gardening", "weeping crusted patch on the face", "widespread hives since last night",
        "ulcer on the shin that will not heal", "dry cracked skin behind the knees", "bald patches on the scalp",
        "hot red {side} lower leg with spreading edge", "painful cluster of blisters along the ribs",
        "acne with scarring on the cheeks", "nail thick and yellow on the {side} foot", "skin peeling after a new tablet",
    ],
}

# Complaints that two services share, each with the smaller hint that settles it.
SHARED = [
    ("chest pain since yesterday", {
        "cardiology": ["worse on exertion", "spreads to the jaw", "father had a heart attack at fifty"],
        "respiratory": ["worse on breathing in", "with cough", "recent long flight and low oxygen"],
        "gastroenterology": ["worse after spicy food", "sour taste in the mouth", "eases with antacid"]}),
    ("short of breath for a week", {
        "cardiology": ["needs three pillows at night", "swollen ankles", "irregular pulse"],
        "respiratory": ["wheeze on both sides", "works with dust", "coughing every morning"]}),
    ("dizzy spells and one collapse", {
        "cardiology": ["heart racing before it", "slow pulse on arrival", "pale and sweaty on exertion"],
        "neurology": ["bit the tongue", "room spinning, unsteady", "confused for an hour afterwards"]}),
    ("numbness and pain in the {side} leg", {
        "neurology": ["reflexes absent", "weakness on both sides", "vision was blurred last month"],
        "orthopaedics": ["began after lifting", "worse on bending the back", "old fracture on that side"]}),
    ("pain in several joints of the hands", {
        "orthopaedics": ["bony swelling of the fingers", "worse after heavy work", "grip weak since a fall"],
        "dermatology": ["silvery scales on the scalp", "pitted nails", "red patches on the elbows"]}),
    ("itching all over the body", {
        "gastroenterology": ["pale stools", "eyes look yellow", "drinks a bottle of wine a day"],
        "dermatology": ["raised red wheals", "new washing powder", "burrows between the fingers"]}),
    ("neck pain and stiffness", {
        "neurology": ["headache and dislikes light", "clumsy hands", "double vision"],
        "orthopaedics": ["after a car crash", "worse on turning the head", "cannot lift the shoulder"]}),
    ("cough for two months", {
        "respiratory": ["smoker, brings up phlegm", "night sweats", "wheezy when running"],
        "gastroenterology": ["after meals and lying down", "heartburn most evenings", "food comes back up"]}),
    ("swollen red {side} leg", {
        "dermatology": ["skin hot with a clear edge", "cracked skin between the toes", "blistering"],
        "orthopaedics": ["twisted it yesterday", "knee cannot bend", "cannot stand on it"],
        "cardiology": ["both legs pit on pressure", "breathless on stairs", "takes water tablets for the heart"]}),
    ("vomiting and feels unwell", {
        "gastroenterology": ["cramping belly pain", "ate at a buffet", "no stool for four days"],
        "neurology": ["severe headache on waking", "unsteady walking", "drowsy and confused"]}),
    ("burning pain on one side of the trunk", {
        "dermatology": ["small blisters in a band", "rash came two days later"],
        "respiratory": ["worse with each breath", "fever and phlegm"]}),
]

OPENINGS = [
    "{age} year old {sex} with {main}", "{sex}, {age}, {main}", "{main} in a {age} year old {sex}",
    "patient complains of {main}", "referred by gp: {main}", "walk in, {main}", "{main} for {time}",
    "{age} y/o {sex} presents with {main}", "seen at triage: {main}", "brought by family, {main}",
    "phone call from {sex} aged {age}, {main}", "reports {main} over {time}",
]
DETAILS = [
    "bp {sys}/{dia}", "pulse {pulse}", "temp {temp}", "oxygen {oxygen}%", "bp {sys}/{dia} pulse {pulse}",
    "history of high blood pressure", "history of diabetes", "history of asthma as a child", "history of eczema",
    "old hip replacement", "known migraine", "previous stomach ulcer", "stent two years ago", "smoker", "non smoker",
    "takes aspirin", "takes ibuprofen for knee pain", "on a statin", "uses an inhaler", "takes omeprazole",
    "no allergies", "allergic to penicillin", "lives alone", "works as a nurse", "works on a building site",
    "very anxious", "comfortable at rest", "pain score {score}", "symptoms for {time}", "started {time} ago",
    "seen here last month", "bloods pending", "ecg normal", "chest clear", "abdomen soft", "skin normal",
    "no chest pain", "no cough", "no headache", "no vomiting", "no rash", "no recent injury", "no weakness",
    "denies palpitations", "denies breathlessness", "appetite normal", "slept badly", "eating and drinking",
    "partner has a cold", "mother had a stroke", "brother has psoriasis", "wants a sick note", "gp worried",
]
SHORTER = [
    ("patient complains of", "pt c/o"), ("short of breath", "sob"), ("shortness of breath", "sob"),
    ("history of", "hx"), ("with", "w/"), ("year old", "yo"), ("high blood pressure", "htn"), ("diabetes", "dm2"),
    ("no recent injury", "nil trauma"), ("fracture", "#"), ("oxygen", "spo2"), ("abdominal", "abdo"),
    ("both sides", "b/l"), ("on examination", "o/e"), ("male", "m"), ("weeks", "wks"), ("days", "d"), ("pulse", "hr"),
]


def fill(rng, phrase, main=""):
    """Put random values in the slots of a phrase."""
    number = rng.randint(2, 9)
    return phrase.format(
        main=main, side=rng.choice(["left", "right"]), sex=rng.choice(["male", "female", "man", "woman"]),
        age=rng.randint(18, 92), time=f"{number} {rng.choice(['hours', 'days', 'weeks', 'months'])}",
        sys=rng.randint(98, 185), dia=rng.randint(55, 104), pulse=rng.randint(52, 128), score=rng.randint(2, 9),
        temp=f"{rng.uniform(36.0, 39.2):.1f}", oxygen=rng.randint(90, 99),
    )


def shorten(rng, text):
    """Abbreviate some phrases, as hurried staff do."""
    padded = f" {text} "
    for long, short in SHORTER:
        if rng.random() < 0.35:
            padded = padded.replace(f" {long} ", f" {short} ")
    return padded.strip()


def contradicts(detail, said):
    """Whether a negated detail denies what the note has just said."""
    verb, _, finding = detail.partition(" ")
    return verb in ("no", "denies") and finding in said


def make_note(rng, label):
    """One note of 8 to 30 words."""
    if rng.random() < 0.55:
        main, *rest = rng.sample(CLEAR[label], rng.choice([1, 1, 2]))
    else:
        main, hints = rng.choice([(text, hints) for text, hints in SHARED if label in hints])
        rest = [rng.choice(hints[label])]
    said = " ".join([main, *rest])
    fitting = [detail for detail in DETAILS if not contradicts(detail, said)]
    parts = rest + rng.sample(fitting, rng.randint(2, 4))
    rng.shuffle(parts)
    opening = fill(rng, rng.choice(OPENINGS), main=fill(rng, main))
    text = rng.choice([", ", ". ", "; "]).join([opening] + [fill(rng, part) for part in parts])
    text = shorten(rng, text)
    return text if 8 <= len(text.split()) <= 30 else make_note(rng, label)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data")
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    seen = set()

    def new_note(label):
        while (text := make_note(rng, label)) in seen:
            pass
        seen.add(text)
        return text

    train = [(new_note(label), label, site)
             for site, counts in SITES.items() for label, count in counts.items() for _ in range(count)]
    test = [(new_note(label), label) for label in CLEAR for _ in range(TEST_PER_LABEL)]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, header, rows in [("train.csv", ["text", "label", "site"], train), ("test.csv", ["text", "label"], test)]:
        rng.shuffle(rows)
        with open(args.out / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([header, *rows])
        print(f"{name}: {len(rows)} notes, {(args.out / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
