"""The words of TinyTLDR: names, relations and the phrase tables behind every sentence.

Slots: `{S}`/`{s}` the person as subject at the start of/inside a sentence ("My sister Anna" or "She"),
`{he} {him} {his}` pronouns, `{t}` the thing that a problem is about, `{rel}` the relation.
In every `post` list the *last* phrasing is kept for the test split: training never sees it.
"""

# relation -> (group, gender or None when the name decides)
RELATIONS = {
    "sister": ("family", "f"), "brother": ("family", "m"), "mom": ("family", "f"), "dad": ("family", "m"),
    "cousin": ("family", None), "aunt": ("family", "f"), "uncle": ("family", "m"), "daughter": ("family", "f"),
    "son": ("family", "m"), "grandma": ("family", "f"), "grandpa": ("family", "m"), "nephew": ("family", "m"),
    "roommate": ("home", None), "neighbor": ("home", None), "landlord": ("home", None),
    "boss": ("work", None), "coworker": ("work", None), "manager": ("work", None),
    "girlfriend": ("love", "f"), "boyfriend": ("love", "m"), "wife": ("love", "f"), "husband": ("love", "m"),
    "classmate": ("school", None), "lab partner": ("school", None), "teacher": ("school", None),
    "best friend": ("friends", None), "friend": ("friends", None), "teammate": ("friends", None),
}  # fmt: skip

SUBREDDITS = {
    "family": ["family", "siblings", "relationships"],
    "home": ["roommates", "neighbors", "advice"],
    "work": ["work", "jobs", "advice"],
    "love": ["relationships", "dating", "advice"],
    "school": ["college", "school", "advice"],
    "friends": ["friendship", "relationships", "advice"],
}

WOMEN = """Anna Maria Laura Sofia Emma Julia Clara Nina Elena Sara Lucy Alice Grace Ruby Rosa Diana Carla Monica
Olivia Hannah Emily Chloe Zoe Mia Lily Ella Eva Ida Vera Nora Iris Tara Dana Gina Tina Rita Lena Lisa Linda Karen Susan
Helen Irene Joyce Judy Kelly Megan Molly Paula Robin Sandra Sharon Tracy Wendy Amber April Becky Bella Brenda Carol
Cindy Daisy Debra Doris Edith Erica Esther Fiona Flora Gloria Greta Hazel Heidi Holly Ingrid Jane Janet Jenny Jessica
Joan Kate Kim Leah Lydia Mabel Maggie Martha Mary Nadia Naomi Natalie Pam Penny Rachel Rebecca Rose Sally Selma Sheila
Sonia Stella Teresa Thea Ursula Violet Yvonne""".split()
MEN = """Tom Mark Paul Peter David Daniel James John Kevin Brian Eric Ryan Adam Alex Simon Oscar Leo Max Felix Hugo
Victor Martin Robert Richard Steven Thomas Frank Henry George Edward Arthur Albert Walter Ralph Roger Bruce Carl Craig
Dennis Derek Donald Doug Earl Eddie Ernest Fred Gary Glenn Gordon Greg Harry Howard Ivan Jack Jacob Jake Jason Jeff
Jerry Jim Joel Jose Josh Juan Karl Keith Ken Kyle Larry Lee Lewis Louis Luke Marco Mario Matt Miguel Mike Mitch Nathan
Neil Nick Noah Norman Omar Owen Pablo Patrick Phil Ray Rick Ron Ross Roy Sam Scott Sean Stan Ted Tim Todd Tony Troy
Tyler Vince Wayne Will Zach""".split()
# Names that only test posts use.
TEST_WOMEN = "Abigail Bianca Celeste Dolores Eleanor Freya Gwen Harriet Imelda Josephine Marlene Tabitha".split()
TEST_MEN = "Alfred Boris Conrad Dmitri Emilio Gareth Horace Isaac Leonard Magnus Rupert Warren".split()

# action -> things it is about, how a summary says it, how a post tells it (last one: test posts only)
PROBLEMS = {
    "borrow": dict(
        things=["car", "bike", "laptop", "jacket", "camera", "guitar", "tent", "scooter", "charger", "umbrella"],
        summary=["keeps borrowing my {t} without asking", "takes my {t} without asking"],
        post=[
            "{S} took my {t} again last week and never asked me first.",
            "Every few days my {t} is gone and it turns out that {s} has it.",
            "{S} thinks it is fine to use my {t} without a word.",
            "When I needed my {t} on Monday, {s} had already left with it.",
            "Again and again {s} just grabs my {t} and never asks me.",
        ],
    ),
    "break": dict(
        things=["laptop", "phone", "camera", "guitar", "bike", "blender", "lamp", "tablet", "window", "drill"],
        summary=["broke my {t} and will not pay for it", "broke my {t} and refuses to pay"],
        post=[
            "Last month {s} dropped my {t}, and now {he} says it is not {his} fault.",
            "{S} ruined my {t} at a party and will not give me a cent.",
            "My {t} is in pieces because of {him}. {S} says it was old anyway.",
            "{S} sat on my {t}. It is dead now and {he} will not buy a new one.",
            "{S} dropped my {t} at a party and will not buy a new one.",
        ],
    ),
    "eat": dict(
        things=["lunch", "leftovers", "cereal", "cookies", "snacks", "yogurt", "pizza", "cheese", "bread", "fruit"],
        summary=["keeps eating my {t}", "eats my {t} all the time"],
        post=[
            "I put my {t} in the fridge and a day later {s} has finished it all.",
            "{S} helps {him}self to my {t} as if it were {his} own.",
            "I have not tasted my own {t} in weeks, because {s} gets there first.",
            "When I come home hungry, nothing is left of my {t} and {s} is full.",
            "Each time I open the fridge, {s} has finished my {t}.",
        ],
    ),
    "forget": dict(
        things=["birthday", "graduation", "wedding", "concert", "recital", "surgery", "promotion", "race"],
        summary=["forgot my {t}", "completely forgot about my {t}"],
        post=[
            "My {t} was on Friday and {s} did not even call.",
            "{S} did not remember my {t}, not even after I told {him} twice.",
            "I waited all day on my {t}. There was no word from {him}, {s} had no idea.",
            "{S} made other plans on the day of my {t} because it slipped {his} mind.",
            "My {t} came and went and {s} did not remember it.",
        ],
    ),
    "unpaid": dict(
        things=["rent", "gas bill", "phone bill", "water bill", "internet bill", "deposit", "loan", "repair"],
        summary=["never pays {his} share of the {t}", "will not pay {his} share of the {t}"],
        post=[
            "I end up covering the {t} every time, because {s} is always broke.",
            "{S} owes me half of the {t} and has a new excuse each month.",
            "The {t} was due on the first and {s} gave me nothing.",
            "We agreed to split the {t}, but {s} has not paid for months.",
            "We agreed to split the {t} and {s} has a new excuse every time.",
        ],
    ),
    "noise": dict(
        things=["drums", "trumpet", "loud music", "video games", "karaoke", "violin", "piano", "techno"],
        summary=["plays {t} late at night", "keeps me awake with {t}"],
        post=[
            "It is two in the morning and {s} starts with {t} again.",
            "I have not slept in a week because of {t}. {S} does not care about the hour.",
            "{S} loves {t}, and {he} loves it most when I am in bed.",
            "The walls are thin and {s} is into {t} until sunrise.",
            "The walls are thin and {s} starts with {t} when I am in bed.",
        ],
    ),
    "pet": dict(
        things=["dog", "cat", "parrot", "rabbit", "hamster", "snake", "turtle", "puppy"],
        summary=["leaves {his} {t} with me every weekend", "expects me to look after {his} {t}"],
        post=[
            "On Friday {s} drops {his} {t} at my door and drives off.",
            "{S} travels a lot and I am the one who feeds the {t}.",
            "I never wanted a {t}, yet {s} makes me walk in and clean up after it.",
            "Somehow the {t} of {his} lives at my place now, and {s} calls that a favor.",
            "{S} drops the {t} at my place and calls that a favor.",
        ],
    ),
    "mess": dict(
        things=[
            "dirty dishes",
            "wet towels",
            "pizza boxes",
            "muddy shoes",
            "old socks",
            "empty cans",
            "hair",
            "crumbs",
        ],
        summary=["leaves {t} everywhere", "never cleans up {his} {t}"],
        post=[
            "There are {t} in the kitchen, in the hall and on my chair. {S} just steps over it.",
            "{S} acts like {t} will vanish on their own.",
            "I cleaned up {t} three times this week, and none of it was mine. It was all from {him}, and {s} watched.",
            "You cannot walk through the room without stepping on {t}. {S} calls it cozy.",
            "You cannot see the kitchen for {t}, and {s} just steps over it.",
        ],
    ),
    "snoop": dict(
        things=["diary", "messages", "emails", "mail", "letters", "notebook", "browser history", "chats"],
        summary=["reads my {t} behind my back", "keeps snooping through my {t}"],
        post=[
            "I caught {him} with my {t} in hand. {S} said {he} was just curious.",
            "{S} knew things that only my {t} could have told {him}.",
            "Nothing is private. Yesterday {s} went through my {t} while I was in the shower.",
            "{S} quoted my own {t} back to me at dinner.",
            "While I was in the shower, {s} was just curious about my {t}.",
        ],
    ),
    "lie": dict(
        things=[
            "the money",
            "the trip",
            "an old debt",
            "the grades",
            "the accident",
            "the party",
            "a secret job",
            "the test",
        ],
        summary=["lied to me about {t}", "is hiding the truth about {t}"],
        post=[
            "I found out by chance that what {s} told me about {t} was made up.",
            "{S} looked me in the eye and gave me a fake story about {t}.",
            "For months {s} had me believe a story about {t} that never happened.",
            "Nothing that {s} said about {t} adds up.",
            "For months {s} told me a fake story about {t}.",
        ],
    ),
    "mock": dict(
        things=["accent", "cooking", "clothes", "haircut", "singing", "height", "dancing", "art"],
        summary=["makes fun of my {t}", "keeps mocking my {t}"],
        post=[
            "At dinner {s} had the whole table laughing at my {t}.",
            "{S} has a new joke about my {t} every single day.",
            "{S} calls it teasing, but the comments about my {t} hurt.",
            "I cannot enter a room before {s} says something mean about my {t}.",
            "{S} says something mean about my {t} every single day.",
        ],
    ),
    "gossip": dict(
        things=["salary", "divorce", "therapy", "crush", "diet", "illness", "exam results", "new job"],
        summary=["tells everyone about my {t}", "keeps gossiping about my {t}"],
        post=[
            "I told {him} about my {t} in private, and by Monday {s} had spread it all over town.",
            "People I barely know ask about my {t}, thanks to {him}. {S} cannot keep a secret.",
            "My {t} was supposed to stay between us, but {s} talks.",
            "{S} brought up my {t} in front of a room full of strangers.",
            "My {t} was supposed to stay private, but {s} had spread it all over town.",
        ],
    ),
    "credit": dict(
        things=["report", "slides", "design", "recipe", "essay", "code", "poster", "speech"],
        summary=["takes credit for my {t}", "passed off my {t} as {his} own"],
        post=[
            "I worked on my {t} for weeks, and {s} put {his} name on it.",
            "{S} showed my {t} around and said that {he} had made it alone.",
            "Everyone praised {him} for my {t}. {S} smiled and never said whose it was.",
            "{S} copied my {t} and collected the applause.",
            "{S} showed my {t} around and never said whose it was.",
        ],
    ),
    "late": dict(
        things=["dinners", "meetings", "practice", "study group", "movie nights", "calls", "lunches", "rehearsals"],
        summary=["is always late for our {t}", "never shows up on time for our {t}"],
        post=[
            "I sit there alone for an hour before {s} arrives at our {t}.",
            "Our {t} start at six. {S} walks in at seven, every time.",
            "{S} has not once been there at the start of our {t}.",
            "The clock means nothing to {him}. {S} misses half of our {t} and smiles.",
            "I sit there alone for an hour, because {s} misses half of our {t}.",
        ],
    ),
    "cancel": dict(
        things=["trip", "date", "picnic", "hike", "game night", "vacation", "brunch", "visit"],
        summary=["keeps canceling our {t}", "canceled our {t} at the last minute"],
        post=[
            "Our {t} was planned for weeks, and an hour before, {s} backed out.",
            "I was already in the car when {s} wrote that our {t} was off.",
            "{S} called off our {t} again with some weak excuse.",
            "This was the third time that {s} did not come to our {t} after promising.",
            "An hour before our {t}, {s} backed out again with some weak excuse.",
        ],
    ),
    "smoke": dict(
        things=["kitchen", "car", "bedroom", "bathroom", "garage", "hallway", "basement", "office"],
        summary=["keeps smoking in my {t}", "smokes in my {t}"],
        post=[
            "My {t} smells like an ashtray, and {s} says it is only a few a day.",
            "{S} lights up in my {t} the moment I turn around.",
            "I find cigarette butts in my {t}. {S} does not even open a window.",
            "{S} has a cigarette in my {t} every morning and calls it fresh air.",
            "{S} lights up in my {t} every morning and does not even open a window.",
        ],
    ),
}

# what the writer tried -> how a summary says it ("I ..."), how a post tells it (last one: test posts only)
TRIED = {
    "talk": dict(
        summary=["talked to {him} about it", "told {him} how I feel"],
        post=[
            "I sat {him} down and explained why this hurts.",
            "We had a long and calm conversation on Sunday.",
            "I have been honest with {him} about my feelings.",
            "On Sunday I sat {him} down and was honest about my feelings.",
        ],
    ),
    "note": dict(
        summary=["left {him} a note"],
        post=[
            "I put a sticky paper on the fridge for {him}.",
            "I wrote it down for {him} in big red letters and taped it to the door.",
            "There is a polite card on {his} desk from me.",
            "I taped a polite card to the door for {him}.",
        ],
    ),
    "help": dict(
        summary=["asked a friend for help", "got a friend to step in"],
        post=[
            "I even brought in someone we both know to speak with {him}.",
            "A mutual friend took my side and had a word with {him}.",
            "I begged a buddy to sort it out with {him}.",
            "I even brought in a buddy to have a word with {him}.",
        ],
    ),
    "ignore": dict(
        summary=["tried to ignore it", "said nothing for weeks"],
        post=[
            "For a while I looked away and hoped it would stop.",
            "I bit my tongue and let it slide.",
            "I pretended that it does not bother me.",
            "For a while I bit my tongue and pretended not to see.",
        ],
    ),
    "lock": dict(
        summary=["locked my door", "put a lock on my room"],
        post=[
            "I bought a big padlock and kept the only key.",
            "I now turn the key whenever I go out.",
            "I keep everything behind a bolt these days.",
            "I bought a bolt and turn the key whenever I go out.",
        ],
    ),
    "yell": dict(
        summary=["yelled at {him}", "lost my temper with {him}"],
        post=[
            "Yesterday I snapped and screamed at the top of my lungs.",
            "I got so angry that I raised my voice at {him}.",
            "There was a huge shouting match between us.",
            "I got so angry that there was a huge shouting match.",
        ],
    ),
    "text": dict(
        summary=["sent {him} a long message", "wrote {him} a long text"],
        post=[
            "I typed three screens on my phone and hit send.",
            "I put it all in an email that took me an hour.",
            "I finally messaged {him} everything, with examples.",
            "I typed everything on my phone with examples and hit send.",
        ],
    ),
    "money": dict(
        summary=["offered {him} money", "offered to pay for a solution"],
        post=[
            "I said that I would cover the cost if it ends.",
            "I put fifty bucks on the table to make it stop.",
            "I told {him} that my wallet is open if that is what it takes.",
            "I put fifty bucks on the table to cover the cost.",
        ],
    ),
    "deadline": dict(
        summary=["gave {him} a deadline", "set {him} a final date"],
        post=[
            "I said that this has to end by the first of the month.",
            "{He} had two weeks from me to change. They are over.",
            "I marked a day on the calendar and told {him} that is it.",
            "{He} had two weeks from me, until the first of the month.",
        ],
    ),
    "same": dict(
        summary=["did the same to {him}", "paid {him} back the same way"],
        post=[
            "I gave {him} a taste of {his} own medicine.",
            "So I got even and acted just like {him} for a few days.",
            "Two can play that game, so I copied {his} behavior.",
            "For a few days I copied {him}, a taste of {his} own medicine.",
        ],
    ),
    "rules": dict(
        summary=["made a list of rules", "set clear rules"],
        post=[
            "I drew up five points that we both signed.",
            "I printed a page of dos and don'ts.",
            "We agreed on limits and I hung them on the wall.",
            "I printed five points and hung them on the wall.",
        ],
    ),
    "gift": dict(
        summary=["bought {him} a gift", "got {him} a present"],
        post=[
            "I thought that being kind would help, so I brought {him} flowers.",
            "I baked {him} a cake to show good will.",
            "I handed {him} a nice box of chocolates as a hint.",
            "To show good will I brought {him} a nice box of chocolates.",
        ],
    ),
    "silence": dict(
        summary=["stopped talking to {him}", "gave {him} the silent treatment"],
        post=[
            "I have not said a word to {him} in nine days.",
            "I leave the room when {he} comes in and do not answer.",
            "We live like strangers since I went quiet.",
            "I leave the room and have not said a word to {him} in days.",
        ],
    ),
}

# question -> groups it fits (None: all), act as a summary says it, how a post tells it (last one: test posts only)
QUESTIONS = {
    "move_out": dict(
        groups=["home", "family", "love"],
        act="move out",
        post=[
            "I am looking at flats of my own.",
            "I could pack my bags and get a place for myself.",
            "Part of me wants to leave this house for good.",
            "Part of me wants to pack my bags and look at flats.",
        ],
    ),
    "break_up": dict(
        groups=["love"],
        act="break up with {him}",
        post=[
            "I wonder if this relationship is over.",
            "I am close to ending it between us.",
            "Maybe I am better off single.",
            "Maybe this relationship is over and I am better off alone.",
        ],
    ),
    "parents": dict(
        groups=["family", "school", "friends"],
        act="tell {his} parents",
        post=[
            "I think that the people who raised {him} ought to know.",
            "I could call {his} mother and father.",
            "Would it be bad to let {his} folks in on this?",
            "I think {his} mother and father ought to know.",
        ],
    ),
    "police": dict(
        groups=["home", "friends"],
        act="call the police",
        post=[
            "I have the number of the cops ready.",
            "I am about to dial 911.",
            "Maybe an officer at the door would change things.",
            "Maybe I will dial the number of the cops.",
        ],
    ),
    "quit": dict(
        groups=["work"],
        act="quit my job",
        post=[
            "My letter of resignation is written already.",
            "I am tempted to walk out and never come back to the office.",
            "I have been applying at other companies.",
            "I am tempted to walk out with my letter of resignation.",
        ],
    ),
    "hr": dict(
        groups=["work"],
        act="go to HR",
        post=[
            "Human resources has an open door, they say.",
            "I could file an official complaint at the company.",
            "There is a form for things like that, upstairs with the personnel people.",
            "I could file a form with human resources.",
        ],
    ),
    "holidays": dict(
        groups=["family", "love", "friends"],
        act="skip the holidays",
        post=[
            "I do not feel like coming home for Christmas this year.",
            "Thanksgiving without me sounds good right now.",
            "I might spend December alone on a beach.",
            "I might spend Christmas alone this year.",
        ],
    ),
    "chance": dict(
        groups=None,
        act="give {him} one more chance",
        post=[
            "Maybe people can change, I do not want to be too hard on {him}.",
            "I am thinking about one last try with {him}.",
            "My heart says to forgive {him} just this once.",
            "My heart says one last try, maybe people can change.",
        ],
    ),
    "apologize": dict(
        groups=None,
        act="apologize first",
        post=[
            "Maybe it is on me to say sorry and end this fight.",
            "I wonder if I was the one who made the mistake.",
            "I could swallow my pride and ask to be forgiven.",
            "Maybe it is on me to swallow my pride and say sorry.",
        ],
    ),
    "quiet": dict(
        groups=None,
        act="just keep quiet",
        post=[
            "Perhaps it is wiser to let it go and live with it.",
            "I do not want drama, so maybe I will not bring it up again.",
            "Maybe silence is the price of peace.",
            "I do not want drama, so perhaps it is wiser to let it go.",
        ],
    ),
    "charge": dict(
        groups=None,
        act="ask {him} for money",
        post=[
            "I feel like {he} should compensate me in cash.",
            "I am tempted to send {him} an invoice.",
            "A bill for all the trouble sounds fair to me.",
            "I am tempted to send {him} a bill for all the trouble.",
        ],
    ),
    "distance": dict(
        groups=None,
        act="take a break from {him}",
        post=[
            "I think some weeks apart would do me good.",
            "I want to see less of {him} for some time.",
            "I need space, maybe a month or two without {him}.",
            "I need some space, maybe some weeks apart.",
        ],
    ),
    "counselor": dict(
        groups=["love", "family", "work", "friends"],
        act="see a counselor with {him}",
        post=[
            "Maybe a professional can help the two of us.",
            "A session of therapy for both of us might work.",
            "I found a mediator who has time on Thursday for us both.",
            "Maybe a session with a mediator can help the two of us.",
        ],
    ),
    "locks": dict(
        groups=["home", "family"],
        act="change the locks",
        post=[
            "A new key that only I own would solve it.",
            "I asked a locksmith for a price.",
            "Then {he} could not get in anymore, the locksmith says it takes an hour.",
            "The locksmith says that a new key would solve it.",
        ],
    ),
}

INTROS = [  # the person, when a sentence of its own introduces them; the last one: test posts only
    "I have a problem with my {rel} {name}.",
    "{name} is my {rel}, and we see each other every day.",
    "This is about my {rel}, {name}.",
    "My {rel} is called {name}.",
    "I need to vent about {name}, my {rel}.",
    "This is about {name}. {He} is my {rel}.",
]
ASK = [  # lead-ins that turn the thought of a QUESTION into a question; the last one: test posts only
    "{q} What do you think?",
    "{q} Is that too much?",
    "{q} Am I wrong?",
    "So here is my question. {q}",
    "{q} Would you do that?",
]
FAILS = [  # the outcome of what was tried, in posts
    "It did not help.", "{He} only laughed.", "Nothing changed.", "{He} did it again the next day.", "That lasted one day.",
]  # fmt: skip
SUMMARY_FAILS = ["it did not help", "nothing changed", "{he} did not listen"]

OPENERS = ["Throwaway account here.", "Sorry for the long post.", "English is not my first language.", "First post here.",
           "I am at the end of my rope."]  # fmt: skip
CLOSERS = ["Thanks for reading.", "Any advice is welcome.", "Please be kind.", "I am so tired."]
BACKGROUND = [
    "We have known each other for {n} years.", "I work nights at a bakery.", "I have a big exam next week.",
    "We live in a small town.", "I just started a new job.", "It has been raining all month.",
    "I am {age} and live near the beach.", "My back has been hurting too.", "We used to play chess every Sunday.",
    "I have a dog and a tiny garden.", "{He} once helped me move a sofa.", "My rent just went up again.",
    "We met at a summer camp.", "I am saving for a trip to Spain.",
]  # fmt: skip
# Other people: they have a name and a relation, and some an opinion. Tempting, and never the point.
BYSTANDERS = [
    "My {rel2} {name2} thinks that I am overreacting.",
    "My {rel2} {name2} finds it funny.",
    "My {rel2} {name2} went through the same thing last year.",
    "My {rel2} {name2} says that I should {act2}.",
    "My {rel2} {name2} told me to {act2}.",
    "If you ask my {rel2} {name2}, I should {act2}.",
]

TITLES = [
    "My {rel} and the {t}", "Need advice about my {rel}", "Trouble with my {rel} over the {t}",
    "I am fed up with my {rel}", "The {t} again", "How do I deal with my {rel}",
]  # fmt: skip

QUESTION_FRAMES = ["Should I {act}?", "Would it be wrong to {act}?", "Is it time to {act}?"]

CHATTER = [
    "It has been raining all month.", "What a game last night.", "Does anyone have a good soup recipe?",
    "I love this place.", "My train was late again.", "The new season is great so far.", "Mods, please pin this.",
    "Happy Friday everyone.", "Who else is up late?", "This is the way.", "I learned to bake bread this year.",
    "My cat knocked over the plant again.", "Is the gym open on Sunday?", "I finally finished that book.",
]  # fmt: skip
