"""The platform as a FastAPI application. It knows models and keys, and no shard.

Start it by itself against a cluster that is there: SHARDWRIGHT_CATALOG=postgresql://.. uvicorn app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from models import AnalyticsEvent, Comment, Genre, Nda, Notification, Pitch, User
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from shardwright import AsyncShardSession, Cluster, errors


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One cluster a process, for as long as it runs."""
    cluster = Cluster.connect(os.environ["SHARDWRIGHT_CATALOG"], application="pitches")
    async with cluster:
        app.state.cluster = cluster
        app.state.new_session = cluster.async_sessionmaker(expire_on_commit=False)
        app.state.users = cluster.async_loader(User)
        yield


app = FastAPI(title="Pitches", lifespan=lifespan)


def the_cluster(request: Request) -> Cluster:
    """The process's cluster."""
    return request.app.state.cluster


async def any_session(request: Request) -> AsyncIterator[AsyncShardSession]:
    """A session without a key: each statement finds its shard, or asks them all."""
    async with request.app.state.new_session() as session:
        yield session


TheCluster = Annotated[Cluster, Depends(the_cluster)]
AnySession = Annotated[AsyncShardSession, Depends(any_session)]


@app.exception_handler(errors.ShardUnavailable)
async def unavailable(request: Request, error: errors.ShardUnavailable) -> JSONResponse:
    """One shard is down: whoever lives on another notices nothing."""
    after = str(max(1, round(float(error.facts.get("retry_after") or 1))))
    return JSONResponse({"detail": error.message}, 503, headers={"Retry-After": after})


# ---------------------------------------------------------------------- what is sent and answered


class NewUser(BaseModel):
    """Who joins."""

    name: str


class NewPitch(BaseModel):
    """What a creator publishes; the secret is for those who signed the NDA."""

    genre: str
    title: str
    secret: str


class Said(BaseModel):
    """What somebody says of a pitch."""

    author_id: int
    said: str


class Signature(BaseModel):
    """Who signs."""

    investor_id: int


# ---------------------------------------------------------------------- one user's own: pinned


@app.post("/users", status_code=201)
async def join(cluster: TheCluster, user: NewUser) -> dict[str, Any]:
    """A new user, on the shard that the id's hash names."""
    number = cluster.next_id()

    async def work(session: AsyncShardSession) -> None:
        session.add(User(id=number, name=user.name))
        session.add(AnalyticsEvent(user_id=number, id=number, name="joined"))

    await cluster.arun(number, work)
    return {"id": number, "name": user.name}


@app.get("/users/{user_id}")
async def profile(session: AnySession, user_id: int) -> dict[str, Any]:
    """A user with all pitches: one shard, two statements."""
    found = await session.get(User, user_id, options=[selectinload(User.pitches)])
    if found is None:
        raise HTTPException(404, "no such user")
    return {
        "id": found.id,
        "name": found.name,
        "pitches": [{"id": one.id, "title": one.title} for one in found.pitches],
    }


@app.post("/users/{user_id}/pitches", status_code=201)
async def publish(cluster: TheCluster, user_id: int, pitch: NewPitch) -> dict[str, Any]:
    """A pitch and the event that tells of it, in one transaction on the creator's shard."""
    number = cluster.next_id()

    async def work(session: AsyncShardSession) -> None:
        session.add(Pitch(creator_id=user_id, id=number, **pitch.model_dump()))
        session.add(AnalyticsEvent(user_id=user_id, id=number, name="published", about={"genre": pitch.genre}))

    await cluster.arun(user_id, work)
    return {"creator_id": user_id, "id": number}


@app.get("/users/{user_id}/notifications")
async def notifications(session: AnySession, user_id: int) -> list[str]:
    """What a user should know, newest first."""
    mine = select(Notification.what).where(Notification.user_id == user_id).order_by(Notification.id.desc()).limit(50)
    return list(await session.scalars(mine))


# ---------------------------------------------------------------------- a pitch: its creator's shard


@app.get("/users/{creator_id}/pitches/{pitch_id}")
async def read(
    request: Request, cluster: TheCluster, creator_id: int, pitch_id: int, reader_id: int | None = None
) -> dict[str, Any]:
    """A pitch with its comments. Whoever commented lives anywhere: those gets are made together, one statement a shard."""

    async def work(session: AsyncShardSession) -> tuple[Pitch, bool]:
        found = await session.get(Pitch, (creator_id, pitch_id), options=[selectinload(Pitch.comments)])
        if found is None:
            raise HTTPException(404, "no such pitch")
        return found, reader_id is not None and await session.get(Nda, (reader_id, creator_id, pitch_id)) is not None

    found, signed = await cluster.arun_across(work)
    authors = await request.app.state.users.get_many([one.author_id for one in found.comments])
    return {
        "title": found.title,
        "secret": found.secret if signed or reader_id == creator_id else None,
        "comments": [
            {"by": author.name if author else None, "said": one.said}
            for one, author in zip(found.comments, authors, strict=True)
        ],
    }


@app.post("/users/{creator_id}/pitches/{pitch_id}/comments", status_code=201)
async def comment(cluster: TheCluster, creator_id: int, pitch_id: int, given: Said) -> dict[str, Any]:
    """A comment, and the creator's notification of it: both on the creator's shard."""
    number = cluster.next_id()

    async def work(session: AsyncShardSession) -> None:
        if await session.get(Pitch, (creator_id, pitch_id)) is None:
            raise HTTPException(404, "no such pitch")
        session.add(Comment(creator_id=creator_id, pitch_id=pitch_id, id=number, **given.model_dump()))
        session.add(Notification(user_id=creator_id, id=number, what=f"a comment: {given.said}"))

    await cluster.arun(creator_id, work)
    return {"id": number}


# ---------------------------------------------------------------------- two users: two shards


@app.post("/users/{creator_id}/pitches/{pitch_id}/nda", status_code=201)
async def sign(cluster: TheCluster, creator_id: int, pitch_id: int, given: Signature) -> dict[str, Any]:
    """The investor's promise and the creator's notification of it: all or nothing, on two shards."""
    number = cluster.next_id()

    async def work(session: AsyncShardSession) -> None:
        if await session.get(Pitch, (creator_id, pitch_id)) is None:
            raise HTTPException(404, "no such pitch")
        if await session.get(Nda, (given.investor_id, creator_id, pitch_id)) is None:
            session.add(Nda(investor_id=given.investor_id, creator_id=creator_id, pitch_id=pitch_id))
            session.add(Notification(user_id=creator_id, id=number, what=f"user {given.investor_id} signed your NDA"))

    await cluster.arun_across(work)
    return {"signed": True}


# ---------------------------------------------------------------------- everybody's: all shards


@app.get("/pitches")
async def newest(session: AnySession, genre: str | None = None, before: int | None = None) -> list[dict[str, Any]]:
    """The newest pitches of all creators. Ids grow with time, so a page goes on where the one before it ended."""
    page = select(Pitch.creator_id, Pitch.id, Pitch.title, Genre.name.label("genre")).join(
        Genre, Genre.code == Pitch.genre
    )
    if genre is not None:
        page = page.where(Pitch.genre == genre)
    if before is not None:
        page = page.where(Pitch.id < before)
    rows = await session.execute(page.order_by(Pitch.id.desc()).limit(20))
    return [dict(row) for row in rows.mappings()]


@app.get("/genres")
async def genres(session: AnySession) -> dict[str, int]:
    """How many pitches each genre has: counted on all shards at once, and added up."""
    counted = select(Pitch.genre, func.count()).group_by(Pitch.genre)
    found = dict((await session.execute(counted)).all())
    return {
        code: found.get(code, 0) for code in await session.scalars(select(Genre.code).order_by(Genre.code.collate("C")))
    }
