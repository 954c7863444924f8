"""The words of key-value lists: common nouns. The probe and the training text share none."""

_PROBE = """
anchor apple arrow basket beach bell bird blanket boat bottle bridge brush bucket butter button cabin camera candle
carpet castle chair cheese cherry church circle clock cloud coffee copper cotton cradle crown curtain desert diamond
donkey dragon drum eagle engine feather fence finger flag flower forest fountain fox garden garlic ginger glass glove
guitar hammer harbor hill honey horse island jacket jewel kettle kitchen knife ladder lamp lemon letter library lion
market meadow mirror monkey mountain mushroom needle ocean onion orange paper parrot pencil pepper piano pillow planet
pocket rabbit ribbon river rocket rose saddle salt shadow shell ship shoulder silver snow spider spoon star stone sugar
table tiger tower train turtle valley violin wagon wheel whistle window winter yard
"""

_TRAINING = """
actor album angle apron atlas badge banker barrel battle beard beetle belt bench berry blade block board bone book boot
border bowl box branch brass bread brick broom bubble bull bus cable cake camel canal canyon card cart cave cellar
chain chalk chest chief child clay cliff coach coast coat coin collar comet cookie cord corn couch cow cricket crystal
cup dancer deer desk dish doctor dog door dress driver duck earth elbow elephant farm farmer field film fire fish flame
flour frog fruit fur gate ghost giant goat gold grape grass gravel guard hall hat hawk heart helmet hook hotel house
ice ink iron jar judge juice jungle key king kite lake lawyer leaf leather lip lock magnet map marble mask match melon
metal milk mine moon motor mouse mud museum nail neck nest net nose nurse oil olive oven owl paint palace pan path
pearl pig pilot pipe plate pond pool pot prince pump queen rain rice ring road robot roof room root rope sail sand saw
scarf school seed sheep shelf shirt shoe sink skirt sky soap sock soup spring square stable stage steam steel storm
straw street string sun sword teacher tent thread throat tomato tooth towel town tray tree truck trumpet tunnel uncle
vase village wall water wave whale wheat wind wine wing wire wolf wood wool
"""

PROBE_WORDS = tuple(_PROBE.split())
"""Keys of the retrieval probe."""
TRAINING_WORDS = tuple(_TRAINING.split())
"""Keys of `data=kv_retrieval`."""
