-- Refuses a step, before it changed anything. The codes are those of error.rs.
CREATE FUNCTION refuse(_code text, _detail json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = _code, MESSAGE = 'refused', DETAIL = _detail::text;
END $$;

-- How long a gateway that is not heard of keeps its turns.
CREATE FUNCTION lease() RETURNS interval LANGUAGE sql STABLE AS $$
    SELECT coalesce(nullif(current_setting('asterism.lease', true), ''), '6 s')::interval
$$;

CREATE FUNCTION register(_gateway uuid) RETURNS void LANGUAGE sql AS $$
    INSERT INTO gateways VALUES (_gateway, clock_timestamp() + lease(), clock_timestamp())
$$;

-- Whether it may run turns until then. A lease that is over is renewed if nobody took anything.
CREATE FUNCTION renew(_gateway uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE gateways SET
        since = CASE WHEN lease_until < clock_timestamp() THEN clock_timestamp() ELSE since END,
        lease_until = clock_timestamp() + lease()
        WHERE id = _gateway;
    RETURN FOUND;
END $$;

-- Holds a gateway's row, so that it runs turns until the step is over: whoever gives it up waits. Renewing does not.
CREATE FUNCTION holds(_gateway uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM gateways WHERE id = _gateway FOR KEY SHARE;
    RETURN FOUND;
END $$;

-- The tokens of a running turn, from one on.
CREATE FUNCTION told(_turn uuid, _from bigint) RETURNS integer[] LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(t.id ORDER BY r.attempt, t.place), '{}')
    FROM tokens r, unnest(r.ids) WITH ORDINALITY AS t(id, place)
    WHERE r.turn = _turn
        AND r.attempt >= (SELECT max(attempt) FROM tokens WHERE turn = _turn AND first = 0)
        AND r.first + t.place > _from
$$;

-- Writes tokens of turns that run under a gateway; those that do. Said again, an attempt does nothing.
CREATE FUNCTION append(
    _gateway uuid, _attempt bigint, _turns uuid[], _firsts bigint[], _starts bigint[], _ends bigint[], _ids integer[]
) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    IF NOT holds(_gateway) THEN
        RETURN;
    END IF;
    INSERT INTO tokens (turn, attempt, first, ids)
        SELECT r.turn, _attempt, a.first, _ids[a.start + 1 : a.stop]
        FROM unnest(_turns, _firsts, _starts, _ends) AS a(turn, first, start, stop)
        JOIN running r ON r.turn = a.turn
        WHERE r.gateway = _gateway
        ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT r.turn FROM running r WHERE r.turn = ANY(_turns) AND r.gateway = _gateway;
END $$;

CREATE TYPE claimed AS (
    tenant text,
    session uuid,
    turn uuid,
    place bigint,
    accepted bytea,
    token_ids integer[],
    attempt bigint,
    stop boolean,
    -- Whether it ran under the gateway that claims.
    own boolean
);

-- Gives up gateways whose lease is over, and takes over what runs under none, or under this one without its knowledge.
CREATE FUNCTION claim(_gateway uuid, _known uuid[], _most bigint) RETURNS SETOF claimed LANGUAGE plpgsql AS $$
DECLARE
    _taken uuid[];
    _own uuid[];
BEGIN
    -- Here is the fence: it waits for the steps that hold such a row, and steps after it find none. A gateway that could not renew
    -- its own lease a moment ago does not know whether others could.
    DELETE FROM gateways WHERE lease_until < clock_timestamp() AND id <> _gateway
        AND EXISTS (SELECT FROM gateways WHERE id = _gateway
            AND since < clock_timestamp() - lease() AND lease_until >= clock_timestamp());
    IF NOT holds(_gateway) THEN
        PERFORM refuse('YS008', '{}');
    END IF;
    WITH orphans AS (
        SELECT r.turn, r.gateway = _gateway AS own FROM running r
        WHERE NOT EXISTS (SELECT FROM gateways g WHERE g.id = r.gateway)
            OR r.gateway = _gateway AND r.turn <> ALL (_known)
        ORDER BY r.turn LIMIT _most
        FOR UPDATE OF r SKIP LOCKED
    ), taken AS (
        UPDATE running r SET gateway = _gateway FROM orphans o WHERE r.turn = o.turn
        RETURNING r.turn, o.own
    )
    SELECT array_agg(turn), array_agg(turn) FILTER (WHERE own) INTO _taken, _own FROM taken;
    -- A statement after the fence sees all that was written before it.
    RETURN QUERY
        SELECT t.tenant, t.session, t.id, t.place, t.accepted, told(t.id, 0),
            coalesce((SELECT max(k.attempt) FROM tokens k WHERE k.turn = t.id), 0), r.stop,
            coalesce(t.id = ANY (_own), false)
        FROM turns t JOIN running r ON r.turn = t.id
        WHERE t.id = ANY (_taken) ORDER BY t.id;
END $$;
