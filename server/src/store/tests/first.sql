-- A database of the first schema, as the last program that had no other (commit ab2bb22) wrote it: what its Records made of
-- jobs driven to each phase, dumped. Never changed; a later schema gets a file of its own.
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO "_sqlx_migrations" VALUES(1,'first','2026-11-23 07:30:07',1,X'2DEDA1DA702C0F2B8F200F5E8C02886DD74870D4770849494EBD3F3991763FF8EC2B9BE6275BF72B85A96A069766AED3',2582066);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- The canonical text, and the base model's files as JSON.
    text TEXT NOT NULL,
    base_model TEXT NOT NULL,
    submitted_ms BIGINT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- The round machine as JSON, and the export recipe once a site has made it.
    machine TEXT NOT NULL,
    recipe TEXT
);
INSERT INTO "jobs" VALUES('completed','reviews','name = "reviews"

[model]
path = "model"

[task]
kind = "text-classification"
labels = ["negative", "positive"]
text_column = "text"
label_column = "label"
max_length = 128

[training]
trainable = "full"
optimizer = "adamw"
momentum = 0.0
learning_rate = 0.00005
layer_decay = 1.0
schedule = "linear"
warmup = 0.1
batch_size = 16
accumulate = 1
length_grouped = false
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
proximal = 0.0
l2_sp = 0.0
label_smoothing = 0.0
focal_gamma = 0.0
token_dropout = 0.0
logit_adjustment = 0.0
seed = 42
precision = "f32"
probe = 0.0
recompute = false

[rounds]
count = 2
cohort = "all"
quorum = 2
deadline = "2h"
attempts = 3

[aggregation]
strategy = "fedavg"
weighting = "examples"

[evaluation]
by = "evaluator"
metric = "accuracy"
patience = 0
min_delta = 0.0
','[{"name":"config.json","artifact":{"digest":"b756e64ea90c4036e88f3f07ff9a708666dc0527bf14a015249e84ff6daabaa7","size":100}},{"name":"model.safetensors","artifact":{"digest":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a","size":100}}]',1750000100000,'completed','all 2 rounds are done','{"plan":{"rounds":2,"cohort":null,"quorum":2,"deadline_ms":7200000,"attempts":3,"by":"evaluator","metric":"accuracy","patience":0,"min_delta":0.0,"seed":42},"phase":{"Ended":{"Completed":"all 2 rounds are done"}},"state":{"digest":"e4565ec0ae6b3d043e58a63c8472fffdc90030690d7123ff0d94924ee8bb9a4b","size":100},"best":{"round":1,"score":0.7},"refused":{},"initializer":"judge"}','{"config_json":"{}","tensors":[]}');
INSERT INTO "jobs" VALUES('training','reviews','name = "reviews"

[model]
path = "model"

[task]
kind = "text-classification"
labels = ["negative", "positive"]
text_column = "text"
label_column = "label"
max_length = 128

[training]
trainable = "full"
optimizer = "adamw"
momentum = 0.0
learning_rate = 0.00005
layer_decay = 1.0
schedule = "linear"
warmup = 0.1
batch_size = 16
accumulate = 1
length_grouped = false
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
proximal = 0.0
l2_sp = 0.0
label_smoothing = 0.0
focal_gamma = 0.0
token_dropout = 0.0
logit_adjustment = 0.0
seed = 42
precision = "f32"
probe = 0.0
recompute = false

[rounds]
count = 3
cohort = "all"
quorum = 2
deadline = "2h"
attempts = 3

[aggregation]
strategy = "fedavg"
weighting = "examples"

[evaluation]
by = "evaluator"
metric = "accuracy"
patience = 0
min_delta = 0.0
','[{"name":"config.json","artifact":{"digest":"b756e64ea90c4036e88f3f07ff9a708666dc0527bf14a015249e84ff6daabaa7","size":100}},{"name":"model.safetensors","artifact":{"digest":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a","size":100}}]',1750000200000,'running','','{"plan":{"rounds":3,"cohort":null,"quorum":2,"deadline_ms":7200000,"attempts":3,"by":"evaluator","metric":"accuracy","patience":0,"min_delta":0.0,"seed":42},"phase":{"Training":{"round":2,"attempt":1,"opened_ms":1750000206000,"sites":{"north":{"Done":{"update":{"digest":"f507fd9067fb7f45411a61c1dc5d07c1410e6596d1b5812adb60feced4a356ab","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"south":{"Working":1750000206000}}}},"state":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"best":{"round":1,"score":0.7},"refused":{},"initializer":"judge"}','{"config_json":"{}","tensors":[]}');
INSERT INTO "jobs" VALUES('aggregating','reviews','name = "reviews"

[model]
path = "model"

[task]
kind = "text-classification"
labels = ["negative", "positive"]
text_column = "text"
label_column = "label"
max_length = 128

[training]
trainable = "full"
optimizer = "adamw"
momentum = 0.0
learning_rate = 0.00005
layer_decay = 1.0
schedule = "linear"
warmup = 0.1
batch_size = 16
accumulate = 1
length_grouped = false
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
proximal = 0.0
l2_sp = 0.0
label_smoothing = 0.0
focal_gamma = 0.0
token_dropout = 0.0
logit_adjustment = 0.0
seed = 42
precision = "f32"
probe = 0.0
recompute = false

[rounds]
count = 3
cohort = "all"
quorum = 2
deadline = "2h"
attempts = 3

[aggregation]
strategy = "fedavg"
weighting = "examples"

[evaluation]
by = "evaluator"
metric = "accuracy"
patience = 0
min_delta = 0.0
','[{"name":"config.json","artifact":{"digest":"b756e64ea90c4036e88f3f07ff9a708666dc0527bf14a015249e84ff6daabaa7","size":100}},{"name":"model.safetensors","artifact":{"digest":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a","size":100}}]',1750000300000,'running','','{"plan":{"rounds":3,"cohort":null,"quorum":2,"deadline_ms":7200000,"attempts":3,"by":"evaluator","metric":"accuracy","patience":0,"min_delta":0.0,"seed":42},"phase":{"Aggregating":{"round":1,"attempt":1,"opened_ms":1750000302000,"updates":{"north":{"update":{"digest":"b8b070a0dcaee036930d1efd8d968aba8af433a0de3c975335fda2149bf8087c","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200},"south":{"update":{"digest":"95ffc5eda688fc95bd95f9bae3fd4ea5fddcabdcb144e820ff5c8f7c843babc9","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"problems":{}}},"state":{"digest":"04720e2d45bde812d35fc2d2315815ae3dcfb53b1c247c7c1830a323eb8098f4","size":100},"best":null,"refused":{},"initializer":"judge"}','{"config_json":"{}","tensors":[]}');
INSERT INTO "jobs" VALUES('evaluating','reviews','name = "reviews"

[model]
path = "model"

[task]
kind = "text-classification"
labels = ["negative", "positive"]
text_column = "text"
label_column = "label"
max_length = 128

[training]
trainable = "full"
optimizer = "adamw"
momentum = 0.0
learning_rate = 0.00005
layer_decay = 1.0
schedule = "linear"
warmup = 0.1
batch_size = 16
accumulate = 1
length_grouped = false
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
proximal = 0.0
l2_sp = 0.0
label_smoothing = 0.0
focal_gamma = 0.0
token_dropout = 0.0
logit_adjustment = 0.0
seed = 42
precision = "f32"
probe = 0.0
recompute = false

[rounds]
count = 3
cohort = "all"
quorum = 2
deadline = "2h"
attempts = 3

[aggregation]
strategy = "fedavg"
weighting = "examples"

[evaluation]
by = "evaluator"
metric = "accuracy"
patience = 0
min_delta = 0.0
','[{"name":"config.json","artifact":{"digest":"b756e64ea90c4036e88f3f07ff9a708666dc0527bf14a015249e84ff6daabaa7","size":100}},{"name":"model.safetensors","artifact":{"digest":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a","size":100}}]',1750000400000,'running','','{"plan":{"rounds":3,"cohort":null,"quorum":2,"deadline_ms":7200000,"attempts":3,"by":"evaluator","metric":"accuracy","patience":0,"min_delta":0.0,"seed":42},"phase":{"Evaluating":{"record":{"round":1,"attempt":1,"opened_ms":1750000402000,"base":{"digest":"04720e2d45bde812d35fc2d2315815ae3dcfb53b1c247c7c1830a323eb8098f4","size":100},"state":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"sites":{"north":{"update":{"digest":"b8b070a0dcaee036930d1efd8d968aba8af433a0de3c975335fda2149bf8087c","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200},"south":{"update":{"digest":"95ffc5eda688fc95bd95f9bae3fd4ea5fddcabdcb144e820ff5c8f7c843babc9","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"problems":{},"evaluations":{},"aggregate_seconds":0.25,"wall_seconds":3.0},"sites":{"judge":{"Working":1750000405000}},"since_ms":1750000405000}},"state":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"best":null,"refused":{},"initializer":"judge"}','{"config_json":"{}","tensors":[]}');
INSERT INTO "jobs" VALUES('gathering','reviews','name = "reviews"

[model]
path = "model"

[task]
kind = "text-classification"
labels = ["negative", "positive"]
text_column = "text"
label_column = "label"
max_length = 128

[training]
trainable = "full"
optimizer = "adamw"
momentum = 0.0
learning_rate = 0.00005
layer_decay = 1.0
schedule = "linear"
warmup = 0.1
batch_size = 16
accumulate = 1
length_grouped = false
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
proximal = 0.0
l2_sp = 0.0
label_smoothing = 0.0
focal_gamma = 0.0
token_dropout = 0.0
logit_adjustment = 0.0
seed = 42
precision = "f32"
probe = 0.0
recompute = false

[rounds]
count = 3
cohort = "all"
quorum = 2
deadline = "2h"
attempts = 3

[aggregation]
strategy = "fedavg"
weighting = "examples"

[evaluation]
by = "evaluator"
metric = "accuracy"
patience = 0
min_delta = 0.0
','[{"name":"config.json","artifact":{"digest":"b756e64ea90c4036e88f3f07ff9a708666dc0527bf14a015249e84ff6daabaa7","size":100}},{"name":"model.safetensors","artifact":{"digest":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a","size":100}}]',1750000500000,'running','','{"plan":{"rounds":3,"cohort":null,"quorum":2,"deadline_ms":7200000,"attempts":3,"by":"evaluator","metric":"accuracy","patience":0,"min_delta":0.0,"seed":42},"phase":{"Gathering":{"round":1,"attempt":1}},"state":{"digest":"04720e2d45bde812d35fc2d2315815ae3dcfb53b1c247c7c1830a323eb8098f4","size":100},"best":null,"refused":{},"initializer":"judge"}','{"config_json":"{}","tensors":[]}');
INSERT INTO "jobs" VALUES('queued','reviews','name = "reviews"

[model]
path = "model"

[task]
kind = "text-classification"
labels = ["negative", "positive"]
text_column = "text"
label_column = "label"
max_length = 128

[training]
trainable = "full"
optimizer = "adamw"
momentum = 0.0
learning_rate = 0.00005
layer_decay = 1.0
schedule = "linear"
warmup = 0.1
batch_size = 16
accumulate = 1
length_grouped = false
weight_decay = 0.01
clip_norm = 1.0
dropout = 0.1
proximal = 0.0
l2_sp = 0.0
label_smoothing = 0.0
focal_gamma = 0.0
token_dropout = 0.0
logit_adjustment = 0.0
seed = 42
precision = "f32"
probe = 0.0
recompute = false

[rounds]
count = 3
cohort = "all"
quorum = 2
deadline = "2h"
attempts = 3

[aggregation]
strategy = "fedavg"
weighting = "examples"

[evaluation]
by = "evaluator"
metric = "accuracy"
patience = 0
min_delta = 0.0
','[{"name":"config.json","artifact":{"digest":"b756e64ea90c4036e88f3f07ff9a708666dc0527bf14a015249e84ff6daabaa7","size":100}},{"name":"model.safetensors","artifact":{"digest":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a","size":100}}]',1750000600000,'queued','','{"plan":{"rounds":3,"cohort":null,"quorum":2,"deadline_ms":7200000,"attempts":3,"by":"evaluator","metric":"accuracy","patience":0,"min_delta":0.0,"seed":42},"phase":{"Initializing":{"attempt":0,"site":null,"heard_ms":0,"problems":{}}},"state":null,"best":null,"refused":{},"initializer":null}',NULL);
CREATE TABLE rounds (
    job TEXT NOT NULL REFERENCES jobs (id),
    round BIGINT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (job, round)
);
INSERT INTO "rounds" VALUES('completed',1,'{"round":1,"attempt":1,"opened_ms":1750000102000,"base":{"digest":"04720e2d45bde812d35fc2d2315815ae3dcfb53b1c247c7c1830a323eb8098f4","size":100},"state":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"sites":{"north":{"update":{"digest":"b8b070a0dcaee036930d1efd8d968aba8af433a0de3c975335fda2149bf8087c","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200},"south":{"update":{"digest":"95ffc5eda688fc95bd95f9bae3fd4ea5fddcabdcb144e820ff5c8f7c843babc9","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"problems":{},"evaluations":{"judge":{"examples":10,"loss_sum":3.0,"confusion":[4,1,2,3]}},"aggregate_seconds":0.25,"wall_seconds":4.0}');
INSERT INTO "rounds" VALUES('completed',2,'{"round":2,"attempt":1,"opened_ms":1750000106000,"base":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"state":{"digest":"e4565ec0ae6b3d043e58a63c8472fffdc90030690d7123ff0d94924ee8bb9a4b","size":100},"sites":{"north":{"update":{"digest":"f507fd9067fb7f45411a61c1dc5d07c1410e6596d1b5812adb60feced4a356ab","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200},"south":{"update":{"digest":"0d249928570685e5f9f9e65d49582890d84022764308bd4f1595add442a07de4","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"problems":{},"evaluations":{"judge":{"examples":10,"loss_sum":3.0,"confusion":[4,1,2,3]}},"aggregate_seconds":0.25,"wall_seconds":4.0}');
INSERT INTO "rounds" VALUES('training',1,'{"round":1,"attempt":1,"opened_ms":1750000202000,"base":{"digest":"04720e2d45bde812d35fc2d2315815ae3dcfb53b1c247c7c1830a323eb8098f4","size":100},"state":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"sites":{"north":{"update":{"digest":"b8b070a0dcaee036930d1efd8d968aba8af433a0de3c975335fda2149bf8087c","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200},"south":{"update":{"digest":"95ffc5eda688fc95bd95f9bae3fd4ea5fddcabdcb144e820ff5c8f7c843babc9","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"problems":{},"evaluations":{"judge":{"examples":10,"loss_sum":3.0,"confusion":[4,1,2,3]}},"aggregate_seconds":0.25,"wall_seconds":4.0}');
INSERT INTO "rounds" VALUES('evaluating',1,'{"round":1,"attempt":1,"opened_ms":1750000402000,"base":{"digest":"04720e2d45bde812d35fc2d2315815ae3dcfb53b1c247c7c1830a323eb8098f4","size":100},"state":{"digest":"769bd2df75df5b1b04756fd81f6fb4d6a88a62cc3c8787e7db30d344316e3ea5","size":100},"sites":{"north":{"update":{"digest":"b8b070a0dcaee036930d1efd8d968aba8af433a0de3c975335fda2149bf8087c","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200},"south":{"update":{"digest":"95ffc5eda688fc95bd95f9bae3fd4ea5fddcabdcb144e820ff5c8f7c843babc9","size":100},"examples":10,"train_loss":0.5,"train_seconds":1.5,"bytes_up":100,"bytes_down":200}},"problems":{},"evaluations":{},"aggregate_seconds":0.25,"wall_seconds":3.0}');
CREATE TABLE sites (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    added_ms BIGINT NOT NULL
);
INSERT INTO "sites" VALUES('judge','evaluator',1750000000001);
INSERT INTO "sites" VALUES('north','site',1750000000002);
INSERT INTO "sites" VALUES('south','site',1750000000003);
COMMIT;
