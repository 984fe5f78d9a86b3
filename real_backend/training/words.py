# ruff: noqa: E501  one record is one line, however long
"""Vocabularies of the generated task text: names, topics, places, a small English-German lexicon.

Data only. Entries are packed in strings, one record a line, fields separated by ``|`` and items of
a field by ``,``; ``table`` and ``words`` unpack them.
"""


def table(text: str) -> list[list[str]]:
    """Rows of fields: one line a row, ``|`` between fields, outer blanks removed."""
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def words(text: str) -> list[str]:
    """The comma-separated items of a text, outer blanks removed."""
    return [item.strip() for item in text.replace("\n", " ").split(",") if item.strip()]


NAMES = words("""
Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ida, Jack, Karen, Leo, Maria, Noah, Olivia, Paul, Rosa,
Sam, Tina, Victor, Wendy, Alice, Bruno, Carla, Daniel, Eva, Frank, Gina, Hugo, Irene, Jonas, Kate, Lucas,
Mona, Nina, Oscar, Peter, Rita, Simon, Tom, Laura, Martin, Julia, Robert, Sarah, Philip, Helen, George
""")

# topic | things it is about | advice (verb phrases) | pitfalls (noun phrases) | pleasures (noun phrases)
TOPICS = table("""
gardening | tomatoes, compost, raised beds, herbs, seedlings | water the beds early in the morning, mix some compost into the soil, cover young plants on cold nights, pull the weeds before they flower | dry soil, hungry snails, late frost | fresh basil on the table, the smell of wet earth
cooking | soups, sauces, fresh vegetables, sharp knives, spices | taste the sauce before you add salt, cut everything before the pan gets hot, let the meat rest for a while, keep a pot of stock ready | burnt garlic, too much salt, soggy rice | a warm kitchen, friends around a big pot
hiking | mountain paths, boots, maps, huts, ridges | start before sunrise, carry more water than you need, check the weather twice, break in the boots on short walks | wet socks, sudden storms, loose stones | the view from the top, silence above the trees
chess | openings, endgames, pawns, tactics, clocks | solve a few puzzles every day, study one endgame a week, write down why you lost, castle before you attack | hasty captures, weak squares, time trouble | a quiet winning move, long analysis after the game
photography | light, lenses, portraits, shadows, streets | wait for the soft light of the evening, move closer to the subject, keep the horizon straight, review only the best ten pictures | blurred hands, empty skies, harsh flash | an honest smile, patterns nobody else noticed
swimming | breathing, turns, kicks, lanes, open water | breathe out under the surface, keep the hips high, count your strokes, rest between the sets | cold muscles, swallowed water, crowded lanes | the calm after the last lap, floating in a lake
painting | brushes, canvas, colour, sketches, varnish | begin with the large shapes, squint to see the values, clean the brush between colours, put the picture away for a week | muddy greens, stiff outlines, cheap paper | the first bright stroke, a studio full of light
programming | functions, tests, loops, errors, names | write the test before the fix, read the error message slowly, give every function one job, delete code that nobody calls | clever tricks, hidden state, copied bugs | a green test run, a program that explains itself
learning German | verbs, cases, vocabulary, films, grammar | repeat ten words before breakfast, read children's books aloud, speak with a partner twice a week, learn each noun with its article | false friends, long word lists, fear of mistakes | the first joke you understand, ordering bread without English
running | shoes, pace, hills, races, breathing | run slowly on easy days, add one kilometre a week, stretch the calves afterwards, sleep eight hours | sore knees, a fast start, old shoes | cool morning air, a strong finish
saving money | budgets, rent, bills, savings, habits | write down every expense, pay yourself first, cancel what you never use, cook at home on weekdays | impulse buys, hidden fees, expensive credit | a calm look at the account, money for a rainy day
public speaking | slides, pauses, gestures, stories, questions | open with a short story, practise in front of a mirror, look at one person at a time, pause after the main point | crowded slides, a flat voice, rushed endings | a laugh at the right moment, questions that show interest
playing the guitar | chords, scales, strings, rhythm, songs | practise with a metronome, change strings every few months, sing while you play, repeat the hard bar slowly | buzzing frets, tense shoulders, skipped practice | a song around the fire, a clean chord change
baking bread | flour, yeast, dough, crust, ovens | weigh the flour and the water, let the dough rise overnight, preheat the oven for half an hour, steam the oven in the first minutes | old yeast, sticky hands, a pale crust | the crackle of the crust, warm slices with butter
travelling by train | stations, tickets, night trains, timetables, luggage | book the window seat early, pack a small bag, leave time for the connection, bring bread and fruit | missed connections, heavy suitcases, strikes | rivers outside the window, talks with strangers
astronomy | telescopes, planets, stars, comets, dark skies | let your eyes adapt for twenty minutes, learn the bright stars first, leave the city lights, keep a log of every night | clouds, dew on the lens, a full moon | the rings of Saturn, a sky without lamps
cycling | brakes, tyres, helmets, gears, routes | pump the tyres every week, shift before the climb, signal every turn, oil the chain after rain | flat tyres, headwind, careless drivers | a long descent, quiet roads at dawn
reading novels | characters, plots, chapters, libraries, endings | read before you sleep, note the lines you love, try an author you do not know, stop when a book bores you | spoilers, tiny print, unfinished piles | a slow Sunday, an ending that surprises
keeping bees | hives, honey, queens, smoke, flowers | move slowly near the hive, check the queen in spring, leave enough honey for winter, plant clover nearby | mites, wet winters, angry neighbours | golden honey, the hum of a strong hive
job interviews | questions, salaries, clothes, handshakes, stories | read about the company, prepare three short stories, ask what the team is proud of, send a note of thanks | long answers, vague promises, late arrivals | an honest talk, a quick yes
meditation | breath, posture, thoughts, silence, timers | sit at the same hour each day, count ten breaths, notice the thought and return, start with five minutes | high hopes, a noisy room, stiff knees | a clear head, patience with others
woodworking | saws, oak, glue, joints, sandpaper | measure twice before you cut, sharpen the chisel often, sand along the grain, leave the glue for a night | split boards, blunt blades, crooked joints | the smell of oak, a drawer that slides
raising a puppy | walks, treats, sleep, toys, training | reward the calm moments, keep the lessons short, go out after every meal, let it meet many people | chewed shoes, sleepless nights, mixed signals | a wagging tail, the first long walk
time management | lists, calendars, meetings, deadlines, focus | plan the day on the evening before, do the hard task first, say no to small meetings, turn off the alerts | endless lists, open tabs, false urgency | an empty inbox, free evenings
weather | clouds, wind, storms, pressure, rain | watch the clouds in the west, read the pressure each morning, compare two forecasts, dress in layers | sudden gusts, icy bridges, wet forecasts | a rainbow after the storm, the first snow
theatre | stages, actors, costumes, rehearsals, scripts | learn the lines by walking, listen to the other actors, warm up the voice, mark your place on the stage | forgotten cues, loud shoes, cold halls | the hush before the curtain, long applause
fishing | hooks, rivers, bait, trout, patience | cast upstream and wait, keep the line tight, use small hooks for trout, let the young fish go | tangled lines, warm water, noisy boats | mist over the river, supper by the lake
electric cars | batteries, chargers, range, tyres, motors | charge at home overnight, brake gently to recover energy, plan the stops on long trips, warm the battery before a fast charge | cold weather, broken chargers, high speed | a silent start, low running costs
""")

COUNTRIES = table("""
France | Paris | Europe | French | euro
Germany | Berlin | Europe | German | euro
Italy | Rome | Europe | Italian | euro
Spain | Madrid | Europe | Spanish | euro
Portugal | Lisbon | Europe | Portuguese | euro
Poland | Warsaw | Europe | Polish | zloty
Sweden | Stockholm | Europe | Swedish | krona
Norway | Oslo | Europe | Norwegian | krone
Denmark | Copenhagen | Europe | Danish | krone
Finland | Helsinki | Europe | Finnish | euro
Greece | Athens | Europe | Greek | euro
Austria | Vienna | Europe | German | euro
Hungary | Budapest | Europe | Hungarian | forint
Iceland | Reykjavik | Europe | Icelandic | krona
Ireland | Dublin | Europe | English | euro
Romania | Bucharest | Europe | Romanian | leu
Turkey | Ankara | Asia | Turkish | lira
Japan | Tokyo | Asia | Japanese | yen
China | Beijing | Asia | Chinese | yuan
India | New Delhi | Asia | Hindi | rupee
Thailand | Bangkok | Asia | Thai | baht
Vietnam | Hanoi | Asia | Vietnamese | dong
Indonesia | Jakarta | Asia | Indonesian | rupiah
Mongolia | Ulaanbaatar | Asia | Mongolian | tugrik
Nepal | Kathmandu | Asia | Nepali | rupee
Egypt | Cairo | Africa | Arabic | pound
Kenya | Nairobi | Africa | Swahili | shilling
Ghana | Accra | Africa | English | cedi
Morocco | Rabat | Africa | Arabic | dirham
Ethiopia | Addis Ababa | Africa | Amharic | birr
Senegal | Dakar | Africa | French | franc
Mexico | Mexico City | North America | Spanish | peso
Canada | Ottawa | North America | English | dollar
Cuba | Havana | North America | Spanish | peso
Brazil | Brasilia | South America | Portuguese | real
Argentina | Buenos Aires | South America | Spanish | peso
Chile | Santiago | South America | Spanish | peso
Peru | Lima | South America | Spanish | sol
Colombia | Bogota | South America | Spanish | peso
Australia | Canberra | Oceania | English | dollar
New Zealand | Wellington | Oceania | English | dollar
""")

ELEMENTS = table("""
hydrogen | H | 1 | the lightest gas
helium | He | 2 | a gas that fills balloons
lithium | Li | 3 | a soft metal in batteries
carbon | C | 6 | the element of diamond and coal
nitrogen | N | 7 | the main part of the air
oxygen | O | 8 | the gas that we breathe
neon | Ne | 10 | a gas that glows in signs
sodium | Na | 11 | a metal in table salt
magnesium | Mg | 12 | a light metal that burns white
aluminium | Al | 13 | a light metal in cans and planes
silicon | Si | 14 | the base of computer chips
sulfur | S | 16 | a yellow solid with a strong smell
chlorine | Cl | 17 | a green gas that cleans pools
calcium | Ca | 20 | a metal in bones and chalk
iron | Fe | 26 | the main part of steel
nickel | Ni | 28 | a hard metal in coins
copper | Cu | 29 | a red metal in wires
zinc | Zn | 30 | a metal that protects steel
silver | Ag | 47 | a white metal in jewels
tin | Sn | 50 | a soft metal in solder
gold | Au | 79 | a yellow metal that never rusts
mercury | Hg | 80 | a liquid metal
lead | Pb | 82 | a heavy and soft metal
uranium | U | 92 | a heavy metal in reactors
""")

# English noun | German noun | gender; things that can be bought, seen or carried
NOUNS_DE = table("""
book | Buch | n
letter | Brief | m
key | Schlüssel | m
lamp | Lampe | f
table | Tisch | m
chair | Stuhl | m
clock | Uhr | f
window | Fenster | n
picture | Bild | n
bottle | Flasche | f
knife | Messer | n
coat | Mantel | m
bag | Tasche | f
map | Karte | f
newspaper | Zeitung | f
apple | Apfel | m
bicycle | Fahrrad | n
car | Auto | n
hat | Hut | m
flower | Blume | f
ring | Ring | m
glass | Glas | n
cup | Tasse | f
computer | Computer | m
piano | Klavier | n
cake | Kuchen | m
suitcase | Koffer | m
umbrella | Regenschirm | m
""")

# English | German | gender; who acts
PEOPLE_DE = table("""
teacher | Lehrer | m
doctor | Ärztin | f
child | Kind | n
woman | Frau | f
man | Mann | m
neighbour | Nachbar | m
student | Studentin | f
girl | Mädchen | n
farmer | Bauer | m
baker | Bäcker | m
sister | Schwester | f
brother | Bruder | m
aunt | Tante | f
guest | Gast | m
writer | Autorin | f
gardener | Gärtner | m
""")

# infinitive | third person | past, English; infinitive | third person | participle, German
VERBS_DE = table("""
buy | buys | bought | kaufen | kauft | gekauft
see | sees | saw | sehen | sieht | gesehen
find | finds | found | finden | findet | gefunden
sell | sells | sold | verkaufen | verkauft | verkauft
bring | brings | brought | bringen | bringt | gebracht
clean | cleans | cleaned | putzen | putzt | geputzt
repair | repairs | repaired | reparieren | repariert | repariert
look for | looks for | looked for | suchen | sucht | gesucht
forget | forgets | forgot | vergessen | vergisst | vergessen
carry | carries | carried | tragen | trägt | getragen
need | needs | needed | brauchen | braucht | gebraucht
hide | hides | hid | verstecken | versteckt | versteckt
paint | paints | painted | malen | malt | gemalt
use | uses | used | benutzen | benutzt | benutzt
""")

ADJECTIVES_DE = table("""
old | alt
new | neu
small | klein
big | groß
red | rot
green | grün
beautiful | schön
cheap | billig
heavy | schwer
strange | seltsam
broken | kaputt
black | schwarz
""")

MOODS_DE = table("""
tired | müde
happy | froh
sick | krank
alone | allein
curious | neugierig
hungry | hungrig
late | spät dran
nervous | nervös
""")

PLACES_DE = table("""
in the garden | im Garten
at the station | am Bahnhof
in the kitchen | in der Küche
at the market | auf dem Markt
in the city | in der Stadt
at school | in der Schule
behind the house | hinter dem Haus
near the river | in der Nähe des Flusses
in the old church | in der alten Kirche
under the bridge | unter der Brücke
at the hotel | im Hotel
in the office | im Büro
""")

TIMES_DE = table("""
yesterday | gestern
last week | letzte Woche
this morning | heute Morgen
on Monday | am Montag
in the evening | am Abend
last summer | letzten Sommer
two days ago | vor zwei Tagen
after lunch | nach dem Mittagessen
on Sunday | am Sonntag
in winter | im Winter
""")

TOWNS = words("""
Ashford, Brookfield, Carlow, Denholm, Eastbury, Fairview, Glenmore, Harwick, Kingsbridge, Lakewood, Millbrook,
Northgate, Oakdale, Pinehurst, Redhill, Silverton, Thornbury, Westport, Woodstock, Stonehaven
""")

# who | did what | to what: the subject matter of the short reports
REPORT_EVENTS = table("""
city council | approved a plan to rebuild | the old bridge, the central library, the bus station, the town hall
school board | voted to close | the north campus, the swimming hall, the evening classes, the music wing
local museum | opened an exhibition about | early clocks, river trade, glass making, women in science
fire service | was called to a blaze in | a paper mill, an empty warehouse, a grain store, a bakery
research team | published a study of | sleeping bats, city noise, deep lakes, wild bees
football club | won the final against | the harbour team, the university side, the defending champions, the southern rivals
railway company | announced delays on | the coast line, the night service, the mountain route, the airport link
farm union | warned about losses of | apples, wheat, honey, potatoes
hospital | received money for | a new ward, two ambulances, a heart scanner, a training centre
theatre group | cancelled the premiere of | a modern comedy, a short opera, a children's play, a silent drama
""")

REPORT_FILLER = [
    "Many people had gathered in front of the building when the news came out",
    "A light rain was falling during most of the day",
    "The local radio station reported live from the scene",
    "Reporters were asked to wait outside for almost an hour",
    "Similar stories have been told in the neighbouring villages",
    "Coffee and sandwiches were served to everybody who came",
    "Traffic in the centre was slow until late in the evening",
    "It was the third event of this kind since the spring",
]

REPORT_REACTIONS = table("""
this is a good day for the whole town | was pleased
the decision came far too late | was critical
nobody had expected such a result | was surprised
there is still a lot of work to do | remained careful
the families need clear answers now | asked for answers
the money could have been used better | doubted the use of the money
we will look back at this with pride | was proud
the next months will be difficult | expected difficult months
""")

SHOP_ITEMS = words("""
apples, pencils, notebooks, tickets, stamps, oranges, cups, candles, postcards, balloons, cookies, marbles,
stickers, sandwiches, bottles of juice, bags of rice, boxes of nails, roses, muffins, books
""")
