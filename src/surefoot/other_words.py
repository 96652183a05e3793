"""Option names of other libraries, and of surefoot before its first release, with the option here.

`python -m surefoot.other_words` prints them as the page docs/options.md.
"""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

from surefoot.config import Config

# Each library's words, as word=option; PART:CHOICE chooses a part, as on the command line.
LIBRARIES = {
    "Stable-Baselines3": """n_envs=num_envs n_steps=num_steps batch_size=minibatch_size n_epochs=num_epochs
        total_timesteps=total_steps learning_rate=learning_rate.initial target_kl=target_kl gamma=advantage.gamma
        gae_lambda=advantage.gae_lambda normalize_advantage=normalize:over_minibatch clip_range=objective.clip_range
        clip_range_vf=value_clip ent_coef=entropy.coef vf_coef=value_coef max_grad_norm=max_grad_norm
        norm_obs=network.running norm_reward=reward:scaled_reward eval_freq=eval_every n_eval_episodes=eval_games
        lstm_hidden_size=memory.units cg_max_steps=objective.cg_steps cg_damping=objective.damping
        line_search_max_iter=objective.backtracks n_critic_updates=num_epochs""",
    "CleanRL": """num_envs=num_envs num_steps=num_steps num_minibatches=minibatch_size update_epochs=num_epochs
        total_timesteps=total_steps num_iterations=total_iterations learning_rate=learning_rate.initial
        anneal_lr=learning_rate:linear_rate target_kl=target_kl gamma=advantage.gamma gae_lambda=advantage.gae_lambda
        norm_adv=normalize:over_minibatch clip_coef=objective.clip_range clip_vloss=value_clip ent_coef=entropy.coef
        vf_coef=value_coef max_grad_norm=max_grad_norm""",
    "rl_games": """num_actors=num_envs horizon_length=num_steps minibatch_size=minibatch_size mini_epochs=num_epochs
        max_frames=total_steps max_epochs=total_iterations learning_rate=learning_rate.initial
        kl_threshold=learning_rate.desired_kl gamma=advantage.gamma tau=advantage.gae_lambda
        normalize_advantage=normalize:over_minibatch e_clip=objective.clip_range clip_value=value_clip
        entropy_coef=entropy.coef critic_coef=value_coef grad_norm=max_grad_norm normalize_input=network.running
        seq_length=memory.length""",
    "Tianshou": """training_num=num_envs num_training_envs=num_envs step_per_collect=num_steps
        collection_step_num_env_steps=num_steps batch_size=minibatch_size repeat_per_collect=num_epochs
        update_step_num_repetitions=num_epochs lr=learning_rate.initial lr_decay=learning_rate:linear_rate
        gamma=advantage.gamma gae_lambda=advantage.gae_lambda norm_adv=normalize:over_minibatch
        advantage_normalization=normalize:over_minibatch recompute_adv=recompute recompute_advantage=recompute
        eps_clip=objective.clip_range dual_clip=objective.dual_clip
        value_clip=value_clip ent_coef=entropy.coef vf_coef=value_coef
        max_grad_norm=max_grad_norm rew_norm=reward:scaled_reward return_scaling=reward:scaled_reward""",
    "RLlib": """num_envs_per_env_runner=num_envs num_envs_per_worker=num_envs rollout_fragment_length=num_steps
        train_batch_size=num_steps train_batch_size_per_learner=num_steps minibatch_size=minibatch_size
        sgd_minibatch_size=minibatch_size num_epochs=num_epochs num_sgd_iter=num_epochs lr=learning_rate.initial
        kl_coeff=kl_penalty.initial kl_target=kl_penalty.desired_kl
        use_kl_loss=kl_penalty:adaptive_penalty gamma=advantage.gamma lambda=advantage.gae_lambda
        lambda_=advantage.gae_lambda clip_param=objective.clip_range vf_clip_param=value_clip
        entropy_coeff=entropy.coef vf_loss_coeff=value_coef grad_clip=max_grad_norm evaluation_interval=eval_every
        evaluation_duration=eval_games use_lstm=memory:lstm lstm_cell_size=memory.units max_seq_len=memory.length""",
    "rsl_rl": """num_envs=num_envs num_steps_per_env=num_steps num_mini_batches=minibatch_size
        num_learning_epochs=num_epochs max_iterations=total_iterations learning_rate=learning_rate.initial
        desired_kl=learning_rate.desired_kl gamma=advantage.gamma lam=advantage.gae_lambda
        normalize_advantage_per_mini_batch=normalize:over_minibatch clip_param=objective.clip_range
        use_clipped_value_loss=value_clip entropy_coef=entropy.coef value_loss_coef=value_coef
        max_grad_norm=max_grad_norm empirical_normalization=network.running
        actor_obs_normalization=network.running init_noise_std=network.std
        rnn_hidden_dim=memory.units rnn_hidden_size=memory.units""",
    "Habitat": """num_environments=num_envs num_steps=num_steps num_mini_batch=minibatch_size ppo_epoch=num_epochs
        lr=learning_rate.initial clip_param=objective.clip_range entropy_coef=entropy.coef value_loss_coef=value_coef
        max_grad_norm=max_grad_norm gamma=advantage.gamma tau=advantage.gae_lambda sync_frac=sync_fraction""",
    "surefoot before": """games=num_envs horizon=num_steps minibatch=minibatch_size epochs=num_epochs max_kl=target_kl
        rate.learning_rate=learning_rate.initial rate.target_kl=learning_rate.desired_kl
        rate.end_factor=learning_rate.end_factor rate.cap=learning_rate.cap rate.floor=learning_rate.floor
        credit.gamma=advantage.gamma credit.lam=advantage.gae_lambda objective.epsilon=objective.clip_range
        regularizer.coefficient=entropy.coef regularizer.end_factor=entropy.end_factor
        regularizer.until=entropy.until regularizer.decay=entropy.decay credit:gae=advantage:gae
        credit:future_return=advantage:future_return credit:episode_return=advantage:episode_return
        rate:fixed_rate=learning_rate:fixed_rate rate:linear_rate=learning_rate:linear_rate
        rate:adaptive_rate=learning_rate:adaptive_rate regularizer:entropy=entropy:entropy
        regularizer:old_policy_cross_entropy=entropy:old_policy_cross_entropy""",
}
WORDS = {name: dict(pair.split("=") for pair in text.split()) for name, text in LIBRARIES.items()}
OPTIONS = {word: option for words in WORDS.values() for word, option in words.items()}
FORMULAS = {
    "vf_coef": "vf_coef, but half of it for CleanRL, whose squared error has a factor 0.5",
    "critic_coef": "critic_coef / 2, as rl_games halves the squared error",
    "target_kl": "target_kl, but 1.5 x target_kl for Stable-Baselines3",
    "num_minibatches": "num_envs x num_steps / num_minibatches",
    "num_mini_batches": "num_envs x num_steps / num_mini_batches",
    "num_mini_batch": "num_envs x num_steps / num_mini_batch",
    "step_per_collect": "step_per_collect / num_envs",
    "collection_step_num_env_steps": "collection_step_num_env_steps / num_envs",
    "train_batch_size": "train_batch_size / num_envs",
    "train_batch_size_per_learner": "train_batch_size_per_learner / num_envs",
}


def kebab(name: str) -> str:
    """A field's or class's name as on the command line: num_envs is num-envs, LinearRate is linear-rate."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).replace("_", "-").lower()


def on_command_line(word: str, cfg: Config | None = None) -> str:
    """The flag or choice here for another library's word, "" for an unknown one.

    Where the part that `cfg` has lacks the option, the choice that has it is named, too.
    """
    word = word.lstrip("-").partition("=")[0].replace("-", "_")
    option = OPTIONS.get(word, "")
    if not option or ":" in option:
        return kebab(option)
    field, _, name = option.partition(".")
    choice = f", of {kebab(field)}:{kebab(_part(option, cfg).__name__)}" if name and _lacks(cfg, field, name) else ""
    return f"--{kebab(option)}{choice}{_formula(word)}"


def in_python(word: str, cfg: Config) -> str:
    """The field here for another library's word, with an example where it is one of a part's; "" for an unknown one."""
    option = OPTIONS.get(word, "")
    field, _, name = option.replace(":", ".").partition(".")
    if not name:
        return option + _formula(word)
    example = f"{field}={_part(option, cfg).__name__}" + ("()" if ":" in option else f"({name}=...)")
    return f"{option}, as in {example}" if "." in option else example


def _formula(word: str) -> str:
    return f" = {FORMULAS[word]}" if word in FORMULAS else ""


def _lacks(cfg: Config | None, field: str, name: str) -> bool:
    return not hasattr(getattr(cfg, field, None), name)


def _part(option: str, cfg: Config | None) -> type:
    """The class that an option is of: the chosen one of `cfg`, or else the first that has it."""
    field, _, name = option.replace(":", ".").partition(".")
    classes: tuple[type, ...] = get_args(get_type_hints(Config)[field])
    if ":" in option:
        return next(c for c in classes if kebab(c.__name__) == kebab(name))
    chosen = type(getattr(cfg, field, None))
    return next(c for c in (chosen, *classes) if name in getattr(c, "__dataclass_fields__", ()))


def page() -> str:
    """docs/options.md."""
    lines = [
        "# Other libraries' options, and what surefoot calls them",
        "",
        "Whoever types another library's word, on the command line or in Python, is told the option here. This page is",
        "printed by `python -m surefoot.other_words`; `surefoot train TASK --help` explains all options.",
        "",
        f"| surefoot | {' | '.join(WORDS)} |",
        "|---" * (1 + len(WORDS)) + "|",
    ]
    for option in dict.fromkeys(OPTIONS.values()):
        flag = kebab(option) if ":" in option else f"--{kebab(option)}"
        cells = [", ".join(f"`{w}`" for w, to in words.items() if to == option) for words in WORDS.values()]
        lines.append(f"| `{flag}` | {' | '.join(cells)} |")
    lines += ["", "Where the numbers differ:", ""]
    lines += [f"- `--{kebab(OPTIONS[word])}` is {formula}" for word, formula in FORMULAS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
