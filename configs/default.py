"""Every key of a run, once, with its unit. A run's own file starts from here and changes what it
must.

    v05 train --config=v05 --workdir=runs/v05 --config.seed=1
"""

from ml_collections import ConfigDict, FieldReference

from v05_jax import plug


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0  # of everything that is drawn
  c.num_steps = 64  # training steps
  # rollouts, discarded ones included, after which a run ends, with its step, even before num_steps;
  # 0 = off. For comparisons at equal rollouts of methods whose steps have different numbers of them
  c.num_rollouts = 0
  # rollouts a step on average; rounded to whole prompts and equal minibatches
  c.rollouts_per_step = 256

  c.policy = policy = ConfigDict()
  # Hugging Face directory, or a model's name on the hub (owner/name), which is fetched; "builtin" =
  # the warm-started policy of the built-in tasks, "builtin_scratchpad" = that with data.scratchpad
  policy.path = "builtin"
  # a name of models/presets.py: random weights instead of `path` (tokenizer still from `path`)
  policy.preset = ""
  # names of its files' keys and tensors: a name of models/families, or module:function; "" = what
  # config.json says
  policy.family = ""
  # compute dtype: float32 | bfloat16, "" = what suits the machine; parameters are stored in float32
  policy.dtype = "float32"
  # What a layer's backward pass computes again: nothing | all | all but attention (flash on a TPU)
  # | all but products with weights; "" = what fits the memory (scale/fit.py).
  policy.remat = "none"  # none | full | attention | dots
  # Attention of the update; flash = the backend's kernel, without scores [T, T]: wants
  # bfloat16, and no loss.share_prompts
  policy.attention = "plain"  # plain | flash
  # Train low-rank adapters (LoRA, arXiv 2106.09685) beside frozen matrices, which are then kept in
  # the compute dtype.
  policy.lora_rank = 0  # of the adapters; 0 = off: every parameter is trained
  policy.lora_alpha = 32.0  # an adapter's product is multiplied by lora_alpha / lora_rank
  # matrices of a layer that have one
  policy.lora_targets = ("q", "k", "v", "o", "gate", "up", "down")

  c.data = data = ConfigDict()
  # "tasks" = the built-in task families, else a .jsonl or .parquet file, or a benchmark's name
  # (benchmarks.py), or "reasoning_gym:" with its tasks' names, or several with commas between
  data.path = "tasks"
  # where NAME.jsonl or NAME.parquet of a benchmark is looked for before the hub is asked
  data.folder = "benchmarks"
  # of the built-in tasks and of reasoning-gym's: train | validation | heldout
  data.split = "train"
  data.size = 16384  # prompts drawn from the built-in tasks, or from reasoning-gym's
  data.families = ("add", "sub", "mod", "sort", "lin", "chain")  # of the built-in tasks
  # Random characters that the demonstrator of the built-in tasks writes behind an answer. They have
  # no part in a verdict: they add noise to the gradient and nothing else (docs/noise.md). 0 = none
  data.scratchpad = 0
  # Of reasoning-gym's tasks, TASK.OPTION=VALUE with commas between, for training and evaluation:
  # "chain_sum.max_terms=3,chain_sum.max_digits=2".
  data.options = ""
  # field of the prompt in a file; "" = detect: prompt, question, problem, messages
  data.prompt_key = ""
  # field of the answer in a file; "" = detect: answer, final_answer, solution, DAPO-Math's
  data.answer_key = ""
  # Wrapped around every prompt of a file or benchmark; "" = {prompt} alone for a file, and for a
  # benchmark the instruction to put the answer in a box (benchmarks.TEMPLATE).
  data.template = ""
  data.chat_template = True  # use the tokenizer's chat template, where it has one
  # Variables that the chat template reads, NAME=VALUE with commas between: enable_thinking=False is
  # Qwen3's without reasoning.
  data.chat_template_kwargs = ""
  # of the draw from the built-in tasks or reasoning-gym's (the order of the data follows the run's
  # seed)
  data.seed = 0

  # task | math | expression | reasoning_gym | module:function
  # The built-in tasks' own, math-verify, the response's arithmetic calculated, reasoning-gym's own
  # verifiers, or a function of yours, called as (prompt, response, row) -> float. Or several of
  # them with weights, [["math", 1.0], ["my_reward:brief", 0.1]].
  c.reward = FieldReference("task", field_type=object)
  c.rewards = rewards = ConfigDict()
  # Of several rewards the name of the one that the test, V, the budget and the accuracy look at; ""
  # = the first, "sum" = their weighted sum
  rewards.success = ""
  # the verifier's reward for failure: mapped to -1; of several rewards that of rewards.success
  rewards.low = 0.0
  rewards.high = 1.0  # and for success: mapped to 1; what lies outside is clipped
  rewards.workers = 2  # verifier processes; the rewards task and expression run in the loop
  rewards.timeout = 10.0  # seconds a verdict may take, a day at most
  # tokens before the limit over which a penalty falls from 0 to -1 (DAPO); 0 = off
  rewards.overlong_buffer = 0

  c.prior = prior = ConfigDict()
  # A name of v05_jax/priors: none | constant | neighbours | probe | critic | v0 | module:function
  prior.kind = "neighbours"
  prior.context = 256  # (prompt, success) pairs kept
  prior.min_support = 32  # pairs before the prior speaks; until then the group mean serves
  # Wrapped around it, the first innermost: names of v05_jax/priors, recalibrate | fallback |
  # history | second_moment, or module:function. The first two are left out around a prior that is
  # not learned.
  prior.wrappers = ("fallback",)

  c.selection = selection = ConfigDict()  # of prompts by their prior, before any rollout
  # prompts looked at for each one taken; 1 = off. Metrics are of the prompts taken
  selection.pool = 1
  # spread: sqrt(1 - V^2) + .1, of the reward that V expects; second_moment: the root of what the
  # wrapper second_moment expects of the prompt's gradient
  selection.score = "spread"  # spread | second_moment
  # weigh a prompt by 1 / its chance: the gradient's expectation is that of all prompts
  selection.weighted = True

  c.sampler = sampler = ConfigDict()
  # rollouts decoded at once, over all devices; as of open_prompts, prefill and loss.micro_rows, 0 =
  # what fits the memory (scale/fit.py)
  sampler.slots = 256
  sampler.chunk = 8  # decode steps of one call, after which the host replaces ended rollouts
  sampler.open_prompts = 128  # prompts whose prefix is kept on the device at once, over all devices
  sampler.prefill = 64  # prompts prefilled by one call, over all devices
  # rollouts of a prompt decoded at once, which read its keys and values once for all
  sampler.share = 4
  # sizes of the cache: all, a half, a quarter ... of the slots, used while few rollouts are left
  sampler.slot_sizes = 1
  # the same in equal parts of the columns, used while no response is long; each is a program more
  sampler.column_sizes = 1
  sampler.max_prompt = 16  # tokens
  sampler.max_response = 8  # tokens, EOS included
  sampler.temperature = 1.0  # of the softmax that tokens are drawn from
  sampler.top_k = 0  # 0 = off
  sampler.top_p = 1.0  # 1 = off
  sampler.truncated = "fail"  # a rollout without EOS at the limit: score | fail | mask

  c.budget = budget = ConfigDict()
  # A name of v05_jax/budgets: fixed | sequential | two_stage | neyman | value | pilot_commit |
  # module:function
  budget.rule = "fixed"
  budget.k_init = 4  # rollouts of every prompt
  budget.k_max = 4  # rollouts of a prompt at most
  # Times that groups without signal are replaced by further prompts (DAPO); 0 = off
  budget.max_resample = 0

  # The advantage's baseline, a name of v05_jax/estimators: v05 | v05_loo | ewa | beta_shrink |
  # batch_shrink | james_stein | spo | grpo | dr_grpo | rloo | maxrl | value | score | score_loo |
  # v05_score | precision | pass_at_k | opo | dbb | kae | ebpo | basis | poise | module:function
  c.baseline = "v05"

  # Observers, called at every step: names of v05_jax/observers, diagnostics | exact | scoreboard |
  # noise | pairs, or module:function.
  c.observe = ("diagnostics", "exact")

  c.loss = loss = ConfigDict()
  # How the ratio to the policy that sampled enters: clip: PPO's; reinforce: -A log p, without it;
  # gspo: the ratio of a whole response, clipped; cispo: the clipped ratio weighs -A log p; dis: the
  # ratio weighs it within the bounds, without gradient outside of them (docs/rivals.md).
  loss.surrogate = "clip"
  loss.clip_low = 0.2  # the ratio's lower bound is 1 - clip_low
  loss.clip_high = 0.2  # the ratio's upper bound is 1 + clip_high
  # lower bound of the surrogate at c * advantage for negative advantages; 0 = off
  loss.clip_dual = 0.0
  loss.kl_coef = 0.0  # KL to the frozen first policy
  loss.entropy_coef = 0.0  # of the policy's entropy, which is added
  # Share of a response's tokens, the least likely ones, that a negative advantage reaches (arXiv
  # 2606.17250); 1 = all.
  loss.negative_tokens = 1.0
  # token | rollout | prompt | constant: what weighs the same; constant: tokens, over a fixed length
  loss.aggregate = "prompt"
  loss.minibatches = 2  # updates an epoch: the prompts are split among them
  loss.epochs = 1  # passes over a step's rollouts
  # rollouts of earlier steps that each step's update has beside its own, of large |advantage|
  # (arXiv 2606.04560); 0 = off
  loss.replay = 0
  loss.replay_age = 4  # steps that a rollout may wait
  # The log-probs in the ratio's denominator: the sampler's own, or those of one more forward pass
  # with the same parameters before the step's first update, for a sampler whose numerics differ
  # from the trainer's (see loss/logprob_gap).
  loss.old_logprob = "sampler"  # sampler | recompute
  # Weight of a token's loss by the ratio of the recomputed probability to the sampler's: tis: the
  # ratio, at most correction_high; icepop: the ratio between both bounds, 0 outside of them.
  loss.correction = "none"  # none | tis | icepop
  loss.correction_low = 0.5  # of the ratio, for icepop
  loss.correction_high = 2.0  # of the ratio, for tis and icepop (others take 5 for the latter)
  # packed rows a device handles at once; 1,000 to 1,500 tokens are fastest on a CPU
  loss.micro_rows = 64
  loss.row_length = 0  # tokens of a packed row; 0 = the longest rollout possible
  # Whether rollouts in one row share their prompt's tokens. Pays where a row has room for several
  # of a prompt.
  loss.share_prompts = True
  loss.vocab_chunk = 1024  # tokens whose logits exist at once
  # steps in a row (of sft and value: updates) with a non-finite loss or gradient; one more ends it
  loss.max_skipped = 5

  c.optimizer = optimizer = ConfigDict()
  # of the built-in tasks' small policy; a language model wants about 1e-6
  optimizer.learning_rate = 1.2e-3
  optimizer.schedule = "constant"  # constant | cosine | linear, after the warm-up
  optimizer.warmup_steps = 0  # updates
  optimizer.b1 = 0.9  # AdamW's decay of the mean gradient
  optimizer.b2 = 0.95  # AdamW's decay of the mean squared gradient
  optimizer.eps = 1e-8  # AdamW's, added to the root of the mean squared gradient
  optimizer.weight_decay = 0.0  # share of a weight that an update takes away, times the rate
  optimizer.clip_norm = 1.0  # of the global gradient norm; 0 = off

  c.sft = sft = ConfigDict()  # v05 sft
  sft.steps = 900  # updates
  sft.batch = 256  # prompts with their responses a step
  sft.learning_rate = 3e-3  # peak, cosine to zero
  sft.warmup_steps = 30  # updates in which the rate rises; that of the first is not 0

  c.value = value = ConfigDict()  # v05 value trains a V0
  # folders of pairs (of the observer pairs) with commas between; "synthetic" = drawn tasks, for a
  # head alone
  value.data = ""
  value.heldout = ""  # folders of pairs to evaluate on, every eval.period steps
  # V0 to begin from; "" = a new adapter on the policy, which stays frozen, and a new head
  value.start = ""
  value.head = ""  # V0 whose head is taken instead
  value.train = "both"  # adapter | head | both
  value.steps = 1000  # updates
  value.tasks = 8  # contexts a step
  value.support = 256  # pairs in a context
  value.pairs = 32  # a success and a failure each to rank in a context
  value.window = 1  # training steps of the policy that share a context
  value.pair_weight = 0.25  # of the ranking loss; the rest is soft cross-entropy
  # weigh the queries of a task so that successes have their context's own share
  value.natural = True
  value.learning_rate = 1e-3  # peak, cosine to zero
  value.warmup = 0.05  # share of the steps
  value.weight_decay = 0.01  # as optimizer.weight_decay
  value.clip_norm = 1.0  # as optimizer.clip_norm
  value.dropout = True  # of 0.2 in the adapter's generator
  value.queries = 16  # of a new adapter: learned queries
  value.width = 4  # of a new adapter: width of a query
  value.heads = 2  # of a new adapter: attention heads
  value.bottleneck = 32  # of a new adapter: width of its generator's bottleneck
  value.estimators = 1  # of a new model: permuted copies of the table that logits are averaged over
  value.layers = 3  # of a new head: layers
  value.embed = 64  # of a new head: width
  value.attention_heads = 4  # of a new head: attention heads
  value.group = 32  # of a new head: columns of features in a group
  value.thinking = 8  # of a new head: learned rows that belong to no pair

  c.eval = evaluate = ConfigDict()
  evaluate.period = 8  # steps between evaluations; 0 = off
  evaluate.path = "tasks"  # as data.path
  evaluate.split = "heldout"  # as data.split
  evaluate.size = 512  # prompts, of each file or benchmark at most, of reasoning-gym's tasks in all
  # rollouts a prompt; 0 = exact success only (built-in tasks); papers on mathematics take 16
  evaluate.samples = 0
  evaluate.temperature = 1.0  # of the softmax, whatever sampler.temperature is

  c.checkpoint = checkpoint = ConfigDict()
  checkpoint.period = 16  # steps between checkpoints; 0 = after the last step only
  checkpoint.keep = 2  # newest checkpoints kept

  c.metrics = shown = ConfigDict()
  # Where they are shown: names of v05_jax/sinks, jsonl | tensorboard | wandb | trackio | mlflow, or
  # module:function. metrics.jsonl is always written.
  shown.sinks = ("jsonl", "tensorboard")
  shown.project = "v05_jax"  # project of the run in wandb, trackio and mlflow
  shown.name = ""  # of the run there; "" = that of its folder

  # Devices that a CPU is split into, where it is the backend; 0 = one a core, which is faster from
  # some million parameters on (experiments/throughput).
  c.cpu_devices = 1
  c.mesh = mesh = ConfigDict()
  mesh.data = -1  # devices along each axis; -1 = all that are left
  mesh.fsdp = 1  # splits parameters and optimiser state beside rows
  mesh.tensor = 1  # splits matrices and the heads of the cache

  # Each plug's own options, declared in its file: c.priors.neighbours.bandwidth stands in
  # v05_jax/priors/neighbours.py. `python -m v05_jax.plug` prints them all.
  plug.fill(c, plug.options())
  return c
