import gymnasium
from gymnasium.vector import SyncVectorEnv


def vector(id, num_envs, mode):
    return SyncVectorEnv([lambda: gymnasium.make(id)] * num_envs, autoreset_mode=mode)


def cart_next(num_envs):
    return vector("CartPole-v1", num_envs, "NextStep")


def cart_same(num_envs):
    return vector("CartPole-v1", num_envs, "SameStep")


def cheetah_next(num_envs):
    return vector("HalfCheetah-v5", num_envs, "NextStep")


def cheetah_same(num_envs):
    return vector("HalfCheetah-v5", num_envs, "SameStep")
