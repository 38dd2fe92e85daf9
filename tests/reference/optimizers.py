"""Optimisers from their formulas, in float64."""

from __future__ import annotations

import numpy as np


def sgd(p, grads, lr, momentum=0.0, weight_decay=0.0):
    p, b = p.astype(np.float64), np.zeros(p.shape)
    for g in grads:
        b = momentum * b + g + weight_decay * p
        p = p - lr * b
    return p


def adagrad(p, grads, lr, eps=1e-10, unit=None):
    p, s = p.astype(np.float64), np.zeros(p.shape)
    for g in grads:
        square = g**2 if unit is None else np.repeat((g.reshape(-1, unit) ** 2).mean(1), unit)
        s = s + square
        p = p - lr * g / (np.sqrt(s) + eps)
    return p


def adamw(p, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, touched=None, unit=None):
    p, m, v = p.astype(np.float64), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        on = np.ones(p.shape, bool) if touched is None else touched[t - 1]
        square = g**2 if unit is None else np.repeat((g.reshape(-1, unit) ** 2).mean(1), unit)
        new_m, new_v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * square
        m_hat, v_hat = new_m / (1 - betas[0] ** t), new_v / (1 - betas[1] ** t)
        new_p = p * (1 - lr * weight_decay) - lr * m_hat / (np.sqrt(v_hat) + eps)
        m, v, p = np.where(on, new_m, m), np.where(on, new_v, v), np.where(on, new_p, p)
    return p
