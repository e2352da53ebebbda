"""Command lines that no program can do, by program, each with words of the sentence that it is answered with.

`{dir}` is a folder of files, `{long}` 300 letters, `{huge}` a number of 31 digits.
"""

# Of all programs.
EVERYWHERE = {
    "--nosuchflag=1": "Unknown command line flag 'nosuchflag'",
    "--flagfile={dir}/nosuch": "nosuch",
}

# Of the programs that take no words beside flags.
NO_WORDS = {
    "stray": "unexpected argument 'stray'; flags start with --",
    "lstm gru": "unexpected argument 'lstm'",
    "{long}": "unexpected argument",
}

# Of the programs that write a folder.
OUT = {
    "--out=": "--out='' is empty",
    "--out=~nosuchuser/x": "--out='~nosuchuser/x': there is no user 'nosuchuser'",
    "--out={long}": "--out",
    "--out=x/{long}/y": "has a name of 300 characters",
}

# Of the programs that train, put behind the flags of a small task.
_CELLS = {
    "nosuch": "unknown cell 'nosuch'; allowed: elman",
    "{long}": "unknown cell",
    "": "",
    "lstm(chrono='x')": "chrono='x' is of the wrong kind; allowed: a number, None.",
    "lstm(chrono=1)": "chrono=1 is not a longest time scale",
    "lstm(param_dtype='foo')": "param_dtype='foo' is no type of floating-point numbers",
    "lstm(param_dtype='int32')": "param_dtype='int32' is no type of floating-point numbers",
    "lstm(dtype=3)": "dtype=3 is no type of floating-point numbers",
    "lstm(use_bias='no')": "use_bias='no' is of the wrong kind; allowed: True or False.",
    "lstm(use_bias=False,forget_bias=1)": "use_bias=False leaves no bias",
    "lstm(use_bias=False,chrono=9)": "use_bias=False leaves no bias",
    "lstm(forget_bias=1e999)": "forget_bias=inf is out of range; allowed: a finite number.",
    "lstm(forget_bias=[1])": "forget_bias=[1] is of the wrong kind",
    "lstm(forget_bias=1,chrono=9)": "both set the bias of the forget gate",
    "lstm(foo=1)": "cell 'lstm' has no argument 'foo'; allowed: forget_bias",
    "lstm(1)": "cannot be read; allowed: name",
    "lstm(forget_bias=x)": "cannot be read; allowed: name",
    "lstm(": "cannot be read; allowed: name",
    "lstm(**{{}})": "cannot be read; allowed: name",
    "lstm(kernel_init='nosuch')": "initializer 'nosuch' is unknown",
    "lstm(learned_carry=3)": "learned_carry=3 is of the wrong kind",
    "elman(activation='nosuch')": "activation='nosuch' is unknown",
    "elman(activation=3)": "activation=3 is of the wrong kind; allowed: a text.",
    "grid_lstm(depth=0)": "depth=0 is not a size",
    "grid_lstm(depth=1.5)": "depth=1.5 is of the wrong kind",
    "grid_lstm(priority='up')": "priority='up'",
    "flax.nnx:RNNCellBase": "has no `initialize_carry` of its own",
    "rnn_jax.cell:PointwiseCell": "cannot be built: AttributeError",
    "flax.nnx:LSTMCell(dtype='foo')": "dtype='foo' is no type",
    "json:JSONDecoder": "module 'json' has no flax.nnx.RNNCellBase 'JSONDecoder'",
    "nosuch.module:Cell": "module 'nosuch.module' cannot be imported (ModuleNotFoundError",
    "bad_cells:Nosuch": "module 'bad_cells' has no flax.nnx.RNNCellBase 'Nosuch'",
    "bad_import:Cell": "module 'bad_import' cannot be imported (RuntimeError: \\x1b[31mred",
    "bad_syntax:Cell": "module 'bad_syntax' cannot be imported (SyntaxError",
    "bad_exit:Cell": "module 'bad_exit' cannot be imported (SystemExit: 7",
    ":": "unknown cell ':'",
}


def cells(flag: str, others: str, chosen=tuple(_CELLS)) -> dict[str, str]:
    return {f'{others} "{flag}={cell}"': _CELLS[cell] or f"{flag}='' is empty" for cell in chosen}


# A few for programs that build a cell as another does.
SOME_CELLS = (
    "nosuch", "", "lstm(chrono='x')", "lstm(param_dtype='foo')", "lstm(use_bias='no')", "lstm(1)",
    "flax.nnx:RNNCellBase", "bad_import:Cell", "bad_exit:Cell",
)  # fmt: skip

# Cells of the user that fail in a step or before: the sentence, and behind it the frames of the user's code.
FAILING_CELLS = {
    "Constructor": "cell bad_cells:Constructor: __init__ raised RuntimeError: no \\x1b[31mluck",
    "ConstructorExits": "cell bad_cells:ConstructorExits: __init__ raised SystemExit",
    "Step": "cell bad_cells:Step: __call__ raised TypeError: add got incompatible shapes",
    "Exits": "cell bad_cells:Exits: __call__ raised SystemExit: 3",
    "Carry": "cell bad_cells:Carry: initialize_carry raised NameError",
}
# Those that return what no step may: a sentence alone.
WRONG_CELLS = {
    "Wide": "cell bad_cells:Wide: a step returned a carry float32",
    "Three": "cell bad_cells:Three: a step returned 3 values; allowed: a pair (carry, y).",
    "Output": "cell bad_cells:Output: a step returned an output of shape",
    "Axes": "cell 'bad_cells:Axes' has num_feature_axes='one'",
}


def failing(flag: str, others: str, chosen=tuple(FAILING_CELLS)) -> dict[str, str]:
    return {f"{others} {flag}=bad_cells:{cell}": FAILING_CELLS[cell] for cell in chosen}


def wrong(flag: str, others: str, chosen=tuple(WRONG_CELLS)) -> dict[str, str]:
    return {f"{others} {flag}=bad_cells:{cell}": WRONG_CELLS[cell] for cell in chosen}


# The same options of tasks, of `tasks`, `train` and `grid_lstm`.
TASK_OPTIONS = {
    "--task=nosuch": "unknown task 'nosuch'; known: adding, addition",
    "--task={long}": "unknown task",
    "--task=csv": "unknown task 'csv'",
    "--task=csv:": "",
    "--task=csv:~nosuch/x": "--task='csv:~nosuch/x': there is no user 'nosuch'",
    "--task=csv:{long}": "has a name of 300 characters",
    "--task=csv:{dir}/nosuch.csv": "there is no file",
    "--task=csv:{dir}": "there is no file",
    "--task=csv:{dir}/bytes.csv": "is not UTF-8",
    "--task=csv:{dir}/one_class.csv": "has one class only",
    "--task=csv:{dir}/texts.csv --text_column=nosuch": "has no column of this name",
    "--task=csv:{dir}/texts.csv --text_column=label": "text_column and label_column are both 'label'",
    "--task=csv:{dir}/texts.csv --tokens=nosuch": "tokens='nosuch' is unknown",
    "--task=csv:{dir}/texts.csv --max_length=0": "max_length=0 is out of range",
    "--task=csv:{dir}/texts.csv --vocab_size=1": "vocab_size=1 is out of range",
    "--task=csv:{dir}/texts.csv --split_seed=-1": "split_seed=-1",
    "--task=csv:{dir}/texts.csv --test_path=": "--test_path='' is empty",
    "--task=csv:{dir}/texts.csv --test_path={dir}/nosuch.csv": "there is no file",
    "--task=jsonl:{dir}/texts.csv": "line 1",
    "--task=series:{dir}/x.ts": "",
    "--task=series:{dir}/empty": "holds no series",
    "--task=series:{dir}/nosuch": "there is no file or folder",
    "--task=series:{dir}/texts.csv": "is no series; allowed",
    "--task=series:{dir}/close": "standard deviation underflows",
    "--task=series:{dir}/far": "allowed: what float32 holds",
    "--task=series:{dir}/overflow": "overflows",
    "--task=text:{dir}/nosuch": "cannot be read (No such file or directory)",
    "--task=text:{dir}": "cannot be read (Is a directory)",
    "--task=text:{dir}/bytes.csv": "UTF-8",
    "--task=pairs:{dir}/nosuch": "nosuch",
    "--task=pairs:{dir}/texts.csv": "there is one column",
    "--task=images:{dir}/nosuch.csv": "there is no file",
    "--task=images:{dir}/texts.csv": "has no column of this name",
    "--task=adding --seq_len=1": "seq_len=1 is out of range; allowed: 2 or more",
    "--task=adding --seq_len=0": "seq_len=0 is out of range",
    "--task=adding --seq_len=x": "--seq_len=x",
    "--task=adding --seq_len=2147483647": "seq_len=2147483647 would need about",
    "--task=adding --test_seq_len=2147483647": "seq_len=2147483647 would need about",
    "--task=adding --seq_len={huge}": "--seq_len={huge} is out of range",
    "--task=adding --train_size={huge}": "--train_size={huge} is out of range",
    "--task=adding --train_size=0": "train_size=0 is out of range; allowed: 1 or more.",
    "--task=adding --test_size=-1": "test_size=-1 is out of range",
    "--task=adding --blanks=3": "blanks=3 is no option of the task 'adding'; it has:",
    "--task=adding --rows": "rows=True is no option of the task 'adding'",
    "--task=parity --seq_len=2147483647": "would need about",
    "--task=copy --alphabet=1": "alphabet=1 is out of range",
    "--task=copy --symbols=1000000000": "seq_len=120 is out of range",
    "--task=dyck --depth=0": "depth=0",
    "--task=addition --digits=0": "digits=0 is out of range",
    "--task=addition --digits=1000000000": "would need about",
    "--task=sine --horizon=0": "horizon=0",
    "--task=dates --train_size=2147483647": "train_size=2147483647",
    "--task=django_translation --languages=nosuch": "nosuch",
}  # fmt: skip

_SMALL = "--task=adding --seq_len=4"
_SHORT = "--task=adding --seq_len=4 --batch=2"

TRAIN = {
    # First, as JAX takes the number of its devices once.
    f"{_SMALL} --devices=3": "batch_size=32 cannot be shared out evenly over devices=3",
    f"{_SMALL} --devices=2000": "--devices=2000",
    f"{_SMALL} --devices=0": "--devices=0",
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    **cells("--cell", _SHORT),
    **failing("--cell", _SHORT),
    **wrong("--cell", _SHORT),
    **failing("--cell", f"{_SHORT} --bidirectional --layers=2", ("Step",)),
    **failing("--cell", "--task=text:{dir}/long.txt --seq_len=4 --batch=2", ("Step", "Carry", "Exits")),
    **failing("--cell", "--task=pairs:{dir}/pairs.tsv --batch=2", ("Constructor", "Step", "Carry", "Exits")),
    **wrong("--cell", "--task=pairs:{dir}/pairs.tsv --batch=2", ("Wide", "Three")),
    **TASK_OPTIONS,
    "--hidden=0": "flag --hidden=0: 0 is not a positive integer",
    "--hidden=1.5": "--hidden=1.5",
    "--hidden={huge}": "--hidden={huge} is out of range; allowed: at most 2147483647.",
    "--hidden=1000000000000": "--hidden=1000000000000 is out of range",
    f"{_SMALL} --hidden=1000000000": "hidden=1000000000, layers=1, batch=32, seq_len=4 would need about 6",
    f"{_SMALL} --hidden=2147483647 --cell=gru": "would need about",
    f"{_SMALL} --hidden=300000 --cell='flax.nnx:GRUCell'": "would need about",
    "--task=adding --seq_len=20000 --batch=100000": "would need about",
    "--task=adding --seq_len=4 --batch=2000000000 --train_size=2147483647": "batch=2000000000, seq_len=4 would need",
    "--task=parity --seq_len=4 --emb_size=2000000000": "emb_size=2000000000, seq_len=4 would need about",
    "--layers=100000": "--layers=100000",
    "--layers=0": "--layers=0",
    "--dropout=1 " + _SMALL: "dropout=1.0 is no rate",
    "--dropout=nan": "--dropout=nan is no finite number",
    "--dropout=-1": "--dropout=-1",
    "--clip=nan": "--clip=nan is no finite number",
    "--clip=inf": "--clip=inf is no finite number",
    "--clip=-1": "--clip=-1",
    "--clip=1e999": "--clip=inf is no finite number",
    "--clip=x": "--clip=x",
    "--weight_decay=nan": "--weight_decay=nan is no finite number",
    "--doubly_stochastic=nan": "--doubly_stochastic=nan is no finite number",
    "--scheduled_sampling=nan": "--scheduled_sampling=nan is no finite number",
    "--learning_rate=nan": "--learning_rate=nan is no finite number",
    f"{_SMALL} --learning_rate=-1": "learning_rate=-1.0 is out of range",
    f"{_SMALL} --learning_rate=0": "learning_rate=0.0 is out of range",
    "--seed=-1": "--seed=-1",
    "--seed=2147483648": "--seed=2147483648 is out of range; allowed: at most 2147483647.",
    "--seed=9223372036854775808": "--seed=9223372036854775808 is out of range",
    "--seed={huge}": "--seed={huge} is out of range",
    "--steps=0": "--steps=0",
    "--steps=100000000000": "--steps=100000000000 is out of range",
    f"{_SMALL} --steps=2147483647 --eval_every=1": "eval_every=1 is out of range for 2147483647 steps",
    f"{_SMALL} --steps=2147483647 --profile_every=2": "profile_every=2 is out of range for 2147483647 steps",
    f"{_SMALL} --steps=9 --instruments_every=9": "--instruments_every=9 is out of range for 9 steps",
    f"{_SMALL} --steps=1000 --instruments_every=9": "for 1000 steps; allowed: 10 or more",
    f"{_SMALL} --instruments=nosuch": "'nosuch' is no instrument",
    f"{_SMALL} --instruments=": "names none",
    f"{_SMALL} --norecurrent --instruments=gates": "has no recurrent layer to measure with --norecurrent",
    f"{_SMALL} --steps=9 --epochs=1": "--steps=9 and --epochs=1.0 say the same",
    f"{_SMALL} --epochs=0": "--epochs=0.0 is out of range",
    "--epochs=nan": "--epochs=nan is no finite number",
    f"{_SMALL} --epochs=1e18": "steps=",
    f"{_SMALL} --batch=0": "--batch=0",
    f"{_SMALL} --batch=9999 --train_size=512": "batch_size=9999 is out of range; allowed: 1 to 512",
    f"{_SMALL} --warmup_steps=9999": "warmup_steps=9999 is out of range; allowed: 0 to 999",
    f"{_SMALL} --accumulate=9999": "accumulate=9999 is out of range",
    f"{_SMALL} --patience=0": "patience=0 is out of range",
    "--optimizer=nosuch": "--optimizer=nosuch",
    "--schedule=nosuch": "--schedule=nosuch",
    "--pool=nosuch": "--pool=nosuch",
    "--on_nonfinite=nosuch": "--on_nonfinite=nosuch",
    "--bidirectional=maybe": "--bidirectional",
    f"{_SMALL} --embeddings={{dir}}/vectors.txt": "is for words, which the task 'adding' does not read",
    f"{_SMALL} --freeze_embeddings": "--freeze_embeddings=True freezes nothing",
    "--embeddings=": "--embeddings='' is empty",
    "--embeddings=~nosuch/x": "there is no user 'nosuch'",
    "--task=csv:{dir}/texts.csv --batch=2 --embeddings={dir}/nosuch": "cannot be read: No such file",
    "--task=csv:{dir}/texts.csv --batch=2 --embeddings={dir}/large.txt": "'1e39' is too large; allowed: numbers that",
    "--task=csv:{dir}/texts.csv --batch=2 --embeddings={dir}/vectors.txt --emb_size=7": "--emb_size=7 differs from",
    "--task=csv:{dir}/texts.csv --batch=2 --crop=nan": "--crop=nan is no finite number",
    "--task=csv:{dir}/texts.csv --batch=2 --crop=2": "crop=2.0",
    "--task=csv:{dir}/texts.csv --batch=2 --token_dropout=1": "token_dropout=1.0",
    f"{_SMALL} --crop=0.5": "change texts to be classified",
    f"{_SMALL} --tie_embeddings": "--tie_embeddings=True has no effect",
    f"{_SMALL} --weight_dropout=0.1": "--weight_dropout=0.1 has no effect",
    f"{_SMALL} --hard_attention": "--hard_attention=True has no effect",
    f"{_SMALL} --attention=dot": "--attention=dot has no effect",
    "--task=parity --seq_len=4 --pool=mean": "pool='mean' with per_step=True",
    "--task=text:{dir}/long.txt --seq_len=4 --bidirectional": "--bidirectional=True has no effect",
    "--task=text:{dir}/long.txt --seq_len=4 --batch=2 --tie_embeddings --emb_size=3": "tie=True with emb_size=3",
    "--task=text:{dir}/long.txt --seq_len=4 --batch=9999": "batch_size=9999 is out of range",
    "--task=digits --data_dir={dir}/file": "cannot be written",
    "--task=digits --data_dir=/proc/x": "data_dir='/proc/x' cannot be written",
    "--data_dir=": "--data_dir='' is empty",
    "--data_dir=~nosuchuser/x": "there is no user 'nosuchuser'",
    "--data_dir={long}": "has a name of 300 characters",
    "--resume": "--resume needs the run to go on with",
    f"{_SHORT} --out={{dir}}/file": "is a file",
    f"{_SHORT} --out=/proc/x": "cannot be written",
}  # fmt: skip

GRADIENT_FLOW = {
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    **cells("--cells", _SHORT, SOME_CELLS),
    **failing("--cells", _SHORT),
    **wrong("--cells", _SHORT),
    "--cells=lstm,lstm": "names a cell twice",
    "--cells=,": "names no cell",
    f'{_SHORT} "--cells=lstm(forget_bias=1.{"0" * 250})"': "--cells has",
    "--task=nosuch": "unknown task 'nosuch'",
    "--task=pairs:{dir}/pairs.tsv": "asks for a sequence for a sequence; allowed: one answer a",
    "--task=text:{dir}/long.txt --seq_len=4": "asks for a stream; allowed: one answer a sequence",
    "--instruments=nosuch": "'nosuch' is no instrument; allowed: profile, jacobian",
    f"{_SHORT} --instruments_every=0": "--instruments_every=0",
    f"{_SHORT} --cells=elman --steps=9 --instruments_every=9": "--instruments_every=9 is out of range for 9 steps",
    "--seq_len=10": "seq_len=10 is out of range for the task 'digits'; allowed: 64 or more",
    "--seq_len=70 --blanks=7": "contradict each other",
    "--blanks=2147483647": "seq_len=2147483711 would need about",
    "--task=adding --seq_len=2147483647": "would need about",
    f"{_SHORT} --hidden=1000000000": "hidden=1000000000, layers=1, batch=2, seeds=5, seq_len=4 would need about",
    f"{_SHORT} --seeds=1000000000 --cells=elman": "seeds=1000000000, seq_len=4 would need about",
    "--seeds=1000000000000": "--seeds=1000000000000 is out of range",
    f"{_SHORT} --seed=2147483647": "seed=2147483647 with seeds=5 is out of range",
    "--seed=2147483648": "--seed=2147483648 is out of range",
    "--seed=9223372036854775808": "is out of range",
    "--layers=100000": "--layers=100000",
    f"{_SMALL} --batch=2000000": "batch_size=2000000 is out of range; allowed: 1 to 100000",
    "--learning_rate=fast": "--learning_rate=fast is no list of rates",
    "--learning_rate=": "--learning_rate= is no list of rates",
    "--learning_rate=nan": "is no list of rates",
    "--learning_rate=1e-3,1e-3": "is no list of rates",
    "--steps=0": "flag --steps=0: 0 is not a positive integer",
    "--steps=100000000000": "--steps=100000000000 is out of range",
    "--clip=nan": "--clip=nan is no finite number",
    "--emb_size=0": "--emb_size=0",
    f"{_SHORT} --cells=elman --out=/proc/nowhere": "--out='/proc/nowhere' cannot be written",
    f"{_SHORT} --cells=elman --resume": "--resume needs the run to go on with; allowed: with --out=FOLDER",
}  # fmt: skip

GRID_LSTM = {
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    "--task=nosuch": "unknown task 'nosuch'; known: adding, addition",
    "--task=csv:{dir}/texts.csv": "has no sequences of one length; allowed: a task that has.",
    "--task=text:{dir}/long.txt --seq_len=4": "has no sequences of one length",
    "--task=digits --blanks=3": "--task=digits has 11 rows; allowed: the 8 of the image, without blanks.",
    "--task=digits --patch=3": "patch=3 does not cover images of 8 x 8; allowed: a divisor of both.",
    "--digits=0": "digits=0 is out of range; allowed: 1 or more.",
    "--digits=1000000000": "would need about",
    "--depth=0": "flag --depth=0: 0 is not",
    "--depth=100000": "--depth=100000",
    "--priority=up": "flag --priority=up: value should be one of <depth|time|none>",
    "--clip=-1": "flag --clip=-1: -1.0 is not a non-negative number",
    "--clip=nan": "--clip=nan is no finite number",
    "--learning_rate=0": "--learning_rate=0",
    "--learning_rate=inf": "--learning_rate=inf is no finite number",
    "--seed=2147483647 --seeds=2 --depth=1": "seed=2147483647 with seeds=2 is out of range",
    "--seeds=1000000000000": "--seeds=1000000000000 is out of range",
    "--seeds=1000000000 --depth=1 --hidden=4": "seeds=1000000000",
    "--hidden=1000000000 --depth=1": "hidden=1000000000",
    "--hidden=1000000000000": "is out of range",
    "--batch=2000000 --depth=1": "batch_size=2000000 is out of range",
    "--steps=0": "--steps=0",
    "--train_size={huge}": "--train_size={huge} is out of range",
    "--data_dir=": "--data_dir='' is empty",
    "--resume --depth=1 --hidden=4": "--resume needs the run to go on with; allowed: with --out=FOLDER.",
}  # fmt: skip

ENSEMBLES = {
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    **cells("--cells", "--batch=2", SOME_CELLS[:3]),  # each reads the digits again
    **failing("--cells", "--batch=2", ["Step"]),
    **wrong("--cells", "--batch=2", ["Wide"]),
    "--cells=lstm,lstm": "names a cell twice",
    "--seeds=1": "--seeds=1",
    "--seeds=1000000000": "seeds=1000000000 would need about",
    "--seeds=1000000000000": "--seeds=1000000000000 is out of range",
    "--hidden=1000000000": "hidden=1000000000, batch=32, seeds=16 would need about",
    "--hidden=0": "--hidden=0",
    "--batch=100000": "batch_size=100000 is out of range; allowed: 1 to 1437",
    "--steps=-1": "--steps=-1",
    "--out=/proc/x --cells=elman": "cannot be written",
}  # fmt: skip

LONG_SEQUENCES = {
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    **cells("--cell", "--lengths=10", SOME_CELLS),
    **failing("--cell", "--lengths=10"),
    **wrong("--cell", "--lengths=10"),
    "--lengths=1": "--lengths=1 is no list of lengths; allowed: whole numbers from 2 up, ascending.",
    "--lengths=10,10": "--lengths=10,10 is no list of lengths",
    "--lengths=100,10": "--lengths=100,10 is no list of lengths",
    "--lengths=ten": "--lengths=ten is no list of lengths",
    "--lengths=": "--lengths= is no list of lengths",
    "--lengths=10,100000000000": "lengths=100000000000 would need about",
    "--lengths=10,{huge}": "would need about",
    "--hidden=1000000000": "hidden=1000000000",
    "--hidden=1000000000000": "--hidden=1000000000000 is out of range",
    "--in_features=2000000000": "in_features=2000000000",
    "--batch=2000000000": "batch=2000000000",
    "--checkpoint_every=-1": "--checkpoint_every=-1",
    "--checkpoint_every=x": "--checkpoint_every=x",
    "--lengths=10 --out=/proc/x": "cannot be written",
    "--lengths=10 --out={dir}/file": "is a file",
}  # fmt: skip

CHECK_CELL = {
    **EVERYWHERE,
    "--cell=lstm stray": "unexpected argument 'stray'; flags start with --",
    "": "Flag --cell must have a value other than None.",
    **cells("--cell", ""),
    **failing("--cell", "", ("Constructor", "ConstructorExits")),
    **wrong("--cell", "", ("Axes",)),
    "--cell=lstm --hidden=0": "--hidden=0",
    "--cell=lstm --hidden=1000000000": "hidden=1000000000, in_features=3 would need about",
    "--cell=lstm --in_features=2000000000": "in_features=2000000000 would need about",
    "--cell=lstm --in_features=-1": "--in_features=-1",
    "--cell=lstm --seed=2147483648": "--seed=2147483648 is out of range",
    "--cell=lstm --seed={huge}": "--seed={huge} is out of range",
    "--cell=lstm --seed=-1": "--seed=-1",
}  # fmt: skip

TASKS = {
    **EVERYWHERE,
    **NO_WORDS,
    **TASK_OPTIONS,
    "--blanks=3": "--blanks=3 is an option of one task; allowed: together with --task.",
    "--rows": "--rows=True is an option of one task",
    "--batch=0": "--batch=0",
    "--batch=1000000000000": "--batch=1000000000000 is out of range",
    "--data_dir=": "--data_dir='' is empty",
    "--task=digits --data_dir={dir}/file": "cannot be written",
    "--task=digits --data_dir=/proc/x": "data_dir='/proc/x' cannot be written",
    "--task=tfds:nosuch": "tensorflow-datasets knows no data set 'nosuch'",
    "--task=csv:{dir}/texts.csv --max_length={huge}": "--max_length={huge} is out of range",
    "--task=mackey_glass --seq_len=2147483647": "would need about",
    "--task=s5 --test_size=0": "test_size=0",
    "--task=induction --alphabet=0": "alphabet=0",
    "--task=associative_recall --pairs=0": "pairs=0",
    "--task=selective_copy --symbols=0": "symbols=0",
    "--task=temporal_order --symbols=0": "symbols=0",
    "--task=delayed_copy --delay=0": "delay=0",
    "--task=dyck --brackets=0": "brackets=0",
}  # fmt: skip

COMPARE = {
    **EVERYWHERE,
    **OUT,
    "": "there is nothing to compare; allowed: one run directory or more.",
    "{dir}/nosuch": "nosuch",
    "{dir}/file": "file",
    "{dir}/empty": "has no config.json; allowed: a run directory that holds one",
    "{dir}/finished --baseline=0.9": "--baseline='0.9' is no score; allowed: NAME=SCORE, with a number.",
    "{dir}/finished --baseline=TF-IDF=high": "--baseline='TF-IDF=high' is no score",
    "{dir}/finished --baseline==0.9": "--baseline='=0.9' is no score",
    "{dir}/finished --baseline=a=nan": "--baseline='a=nan' is no score",
    "{dir}/finished --out={dir}/file": "--out='{dir}/file' cannot be made (File exists)",
    "{dir}/finished --out=/proc/x": "--out='/proc/x' cannot be made",
    "{dir}/finished --out={dir}/file/x": "cannot be made (Not a directory)",
}  # fmt: skip

ORDER_AND_CHAOS = {
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    "--gains=": "--gains= is no list of gains; allowed: numbers above 0, ascending.",
    "--gains=1,x": "--gains=1,x is no list of gains",
    "--gains=2,1": "--gains=2,1 is no list of gains",
    "--gains=0": "--gains=0 is no list of gains",
    "--gains=nan": "--gains=nan is no list of gains",
    "--hidden=1": "--hidden=1",
    "--hidden=1000000000": "hidden=1000000000 would need about",
    "--seeds=1000000000": "seeds=1000000000, hidden=200 would need about",
    "--steps=3": "--steps=3",
    "--transient=-1": "--transient=-1",
}  # fmt: skip

REPORT = {
    **EVERYWHERE,
    "": "there is no run to report on; allowed: one run directory or more.",
    "{dir}/nosuch": "nosuch",
    "{dir}/file": "file",
    "{dir}/empty": "has no config.json; allowed: a run directory that holds one",
}  # fmt: skip

MEASURE = {
    **EVERYWHERE,
    **NO_WORDS,
    "": "--run is missing; allowed: a run directory of experiments.train, gradient_flow or grid_lstm.",
    "--run={dir}/empty": "--run='{dir}/empty' holds no run",
    "--run={dir}/file": "holds no run",
    "--run={dir}/sequence --instruments=nosuch": "nosuch",
    "--run={dir}/sequence --instruments=": "",
    "--run={dir}/sequence --at=halfway": "--at=halfway is no choice of networks; allowed: initialization, step_<k>",
    "--run={dir}/sequence --at=step_0": "--at=step_0 is no choice of networks",
    "--run={dir}/sequence --at=all,trained": "--at=all,trained is no choice of networks",
    "--run={dir}/sequence --sequences=0": "--sequences=0",
}  # fmt: skip

INSPECT_STATE = {
    **EVERYWHERE,
    **NO_WORDS,
    "": "--run is missing; allowed: a folder that experiments.train wrote.",
    "--run={dir}/empty": "holds no run",
    "--run={dir}/sequence": "whose answer is a sequence for a sequence",
    "--run={dir}/stream --text=": "--text='' is empty",
    "--run={dir}/stream --layer=nosuch": "--layer='nosuch' is no recurrent layer of the run; allowed: rnn.",
    "--run={dir}/stream --text=the --unit=2": "--unit=2 is no unit of the layer 'rnn'; allowed: 0 to 1.",
    "--run={dir}/stream --text=the --property=nosuch": "nosuch",
    "--run={dir}/stream --labels={dir}/file": "--labels",
    "--run={dir}/stream --text=the --labels={dir}/file": "label",
}  # fmt: skip

GENERATE = {
    **EVERYWHERE,
    **NO_WORDS,
    "": "--run is missing",
    "--prompt=the": "--run is missing; allowed: --run=FOLDER of experiments.train, and --prompt=TEXT.",
    "--run={dir}/stream": "--prompt is missing",
    "--run={dir}/stream --prompt=": "--prompt='' is empty; allowed: at least one character.",
    "--run= --prompt=the": "--run='' is empty",
    "--run=~nosuch --prompt=the": "there is no user 'nosuch'",
    "--run={dir}/empty --prompt=the": "holds no run; allowed: a folder that experiments.train wrote.",
    "--run={dir}/file --prompt=the": "holds no run",
    "--run={dir}/sequence --prompt=the": "whose answer is a sequence for a sequence",
    "--run={dir}/stream --prompt=the?": "--prompt='the?' has the character '?', which is not in the vocabulary",
    "--run={dir}/stream --prompt=the --temperature=-1": "temperature=-1.0 is out of range",
    "--run={dir}/stream --prompt=the --temperature=nan": "--temperature=nan is no finite number",
    "--run={dir}/stream --prompt=the --temperature=inf": "--temperature=inf is no finite number",
    "--run={dir}/stream --prompt=the --top_k=0": "top_k=0 is out of range; allowed: 1 or more.",
    "--run={dir}/stream --prompt=the --top_p=0": "top_p=0.0 is out of range",
    "--run={dir}/stream --prompt=the --top_p=nan": "--top_p=nan is no finite number",
    "--run={dir}/stream --prompt=the --length=0": "--length=0",
    "--run={dir}/stream --prompt=the --length={huge}": "--length={huge} is out of range",
    "--run={dir}/stream --prompt=the --samples=2000000000": "samples=2000000000, length=500 would need about",
    "--run={dir}/stream --prompt=the --seed=2147483648": "--seed=2147483648 is out of range",
}  # fmt: skip

TRANSLATE = {
    **EVERYWHERE,
    "": "there is no text to translate; allowed: one or more texts in quotes, or --evaluate.",
    "cat": "--run is missing",
    "--run={dir}/sequence": "there is no text to translate; allowed: one or more texts in quotes, or --evaluate.",
    "--run={dir}/sequence ' '": "the text ' ' is empty; allowed: one or more characters.",
    "--run={dir}/sequence 'fad Ж7'": "characters that no source of the training split has: 'Ж' '7'",
    "--run={dir}/sequence --language=fi cat": "--language='fi' is not what the model writes; allowed: none.",
    "--run={dir}/sequence --language= cat": "--language='' is empty",
    "--run={dir}/sequence --beam=0 cat": "--beam=0",
    "--run={dir}/sequence --beam=100000 cat": "--beam=100000",
    "--run={dir}/sequence --length_penalty=nan cat": "--length_penalty=nan is no finite number",
    "--run={dir}/sequence --length_penalty=-1 cat": "--length_penalty=-1",
    "--run={dir}/empty cat": "holds no run; allowed: a folder that experiments.train wrote.",
    "--run={dir}/stream cat": "whose answer is a stream",
    "--run={dir}/images cat": "which reads no text",
    "--run={long} cat": "has a name of 300 characters",
}  # fmt: skip

CAPTION = {
    **EVERYWHERE,
    "image.png": "--run is missing; allowed: a folder that experiments.train wrote.",
    "--run={dir}/images": "there is no image to caption; allowed: one or more files, --glyph, or --evaluate.",
    "--run={dir}/empty image.png": "holds no run",
    "--run={dir}/images --glyph=a": "--glyph=a is for a run of glyphs",
    "--run={dir}/images --glyph=": "--glyph='' is empty",
    "--run={dir}/images {dir}/none.png": "there is no file",
    "--run={dir}/images {dir}/texts.csv": "is no image that Pillow can read",
    "--run={dir}/images {long}": "File name too long",
    "--run={dir}/images --face=nosuch image.png": "--face=nosuch",
    "--run={dir}/images --beam=0 image.png": "--beam=0",
    "--run={dir}/images --length_penalty=nan image.png": "--length_penalty=nan is no finite number",
    "--run={dir}/sequence image.png": "which sees no images",
    "--run={dir}/stream image.png": "whose answer is a stream",
}  # fmt: skip

BENCHMARK = {
    "--devices=2000": "--devices=2000",
    **EVERYWHERE,
    **NO_WORDS,
    **OUT,
    "--cells=elman,nosuch": "cells='elman,nosuch': 'nosuch' is unknown; allowed: elman, gru, lstm.",
    "--cells=gru,gru": "cells='gru,gru' names one twice; allowed: elman, gru, lstm.",
    "--cells=,": "cells=',' names none; allowed: elman, gru, lstm.",
    "--cells=": "--cells='' is empty",
    "--peers=memax": "peers='memax': 'memax' is unknown; allowed: torch, flax.nnx, flax.linen, equinox, keras.",
    "--passes=backward": "passes='backward': 'backward' is unknown; allowed: forward, gradient, step.",
    "--grid=32x128x64": "grid='32x128x64': '32x128x64' is no point; allowed: BxTxIxH (batch, time",
    "--grid=0x128x64x64": "grid='0x128x64x64': '0x128x64x64' is no point",
    "--grid=1x1x1x1000000000": "grid='1x1x1x1000000000' would need about",
    "--grid=1x100000000000x1x1": "grid='1x100000000000x1x1' would need about",
    "--grid=1x1x1x{huge}": "would need about",
    "--layers=100000": "--layers=100000",
    "--repeats=0": "--repeats=0",
    "--what=nosuch": "--what=nosuch",
    "--what=profile --passes=forward": "passes='forward': 'forward' is unknown; allowed: gradient, step.",
    "--what=profile --peers=torch": "peers='torch' has no meaning with what='profile', where ours runs alone.",
    "--out={dir}/file --quick": "--out='{dir}/file' is a file",
}  # fmt: skip

BY_PROGRAM = {
    "train": TRAIN,
    "gradient_flow": GRADIENT_FLOW,
    "compare": COMPARE,
    "tasks": TASKS,
    "check_cell": CHECK_CELL,
    "inspect_state": INSPECT_STATE,
    "generate": GENERATE,
    "translate": TRANSLATE,
    "caption": CAPTION,
    "order_and_chaos": ORDER_AND_CHAOS,
    "report": REPORT,
    "measure": MEASURE,
    "grid_lstm": GRID_LSTM,
    "ensembles": ENSEMBLES,
    "long_sequences": LONG_SEQUENCES,
    "benchmark": BENCHMARK,
}

# A cell of a user that has no fault.
LEAKY = """
import jax.numpy as jnp
from flax import nnx


class Leaky(nnx.RNNCellBase):
    def __init__(self, in_features, hidden_features, *, rngs):
        self.size, self.input = hidden_features, nnx.Linear(in_features, hidden_features, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.size))

    def __call__(self, h, x):
        h = 0.5 * h + jnp.tanh(self.input(x))
        return h, h

    @property
    def num_feature_axes(self):
        return 1
"""

BAD_CELLS = f"""
import sys
{LEAKY}

class Constructor(Leaky):
    def __init__(self, in_features, hidden_features, *, rngs):
        raise RuntimeError("no \\x1b[31mluck")


class ConstructorExits(Leaky):
    def __init__(self, in_features, hidden_features, *, rngs):
        sys.exit()


class Step(Leaky):
    def __call__(self, h, x):
        return jnp.zeros(3) + jnp.zeros(4), h


class Exits(Leaky):
    def __call__(self, h, x):
        sys.exit(3)


class Carry(Leaky):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return nothing_of_this_name


class Wide(Leaky):
    def __call__(self, h, x):
        return jnp.concatenate([h, h], -1), h


class Three(Leaky):
    def __call__(self, h, x):
        return h, h, h


class Output(Leaky):
    def __call__(self, h, x):
        return h, h[0, 0]


class Axes(Leaky):
    @property
    def num_feature_axes(self):
        return "one"
"""
