-- Counts what a tenant keeps; the last change of a step that is about one session, as others may wait for its row.
CREATE FUNCTION count_usage(_tenant text, _sessions bigint, _bytes bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO usage AS u VALUES (_tenant, pg_backend_pid() % 16, _sessions, _bytes)
    ON CONFLICT (tenant, part) DO UPDATE
        SET sessions = u.sessions + excluded.sessions, bytes = u.bytes + excluded.bytes
$$;

CREATE FUNCTION no_session(_id uuid) RETURNS void LANGUAGE sql AS $$
    SELECT refuse('YS001', json_build_object('session', _id))
$$;

CREATE FUNCTION conflict(_session sessions, _why text) RETURNS void LANGUAGE sql AS $$
    SELECT refuse('YS005', json_build_object(
        'session', _session.id, 'version', _session.version, 'why', _why))
$$;

-- A tenant's session, which nobody else changes until the step is over.
CREATE FUNCTION hold_session(_tenant text, _id uuid) RETURNS sessions LANGUAGE plpgsql AS $$
DECLARE
    _session sessions;
BEGIN
    SELECT * INTO _session FROM sessions WHERE id = _id AND tenant = _tenant FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM no_session(_id);
    END IF;
    RETURN _session;
END $$;

-- The same, if it may change.
CREATE FUNCTION hold_idle(_tenant text, _id uuid, _version bigint) RETURNS sessions LANGUAGE plpgsql AS $$
DECLARE
    _session sessions := hold_session(_tenant, _id);
BEGIN
    IF _session.running IS NOT NULL THEN
        PERFORM conflict(_session, 'running');
    END IF;
    IF _version <> _session.version THEN
        PERFORM conflict(_session, 'version');
    END IF;
    RETURN _session;
END $$;

CREATE FUNCTION too_few_turns(_session uuid, _has bigint, _wanted bigint) RETURNS void LANGUAGE sql AS $$
    SELECT refuse('YS006', json_build_object('session', _session, 'has', _has, 'wanted', _wanted))
$$;

-- Makes a session, of another's turns if a source is named. The one that its key made before is given as it is; the caller
-- looks whether it is the same. `_again`: an attempt before this may have made it.
CREATE FUNCTION make_session(
    _tenant text, _id uuid, _key bytea, _settings bytea, _created_ms bigint, _source uuid, _turns bigint,
    _most bigint, _again boolean
) RETURNS SETOF sessions LANGUAGE plpgsql AS $$
DECLARE
    _from sessions;
    _kept bigint;
BEGIN
    RETURN QUERY SELECT * FROM sessions WHERE tenant = _tenant AND key = _key;
    IF FOUND THEN
        RETURN;
    END IF;
    IF _again THEN
        RETURN QUERY SELECT * FROM sessions WHERE tenant = _tenant AND id = _id;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF _source IS NOT NULL THEN
        _from := hold_session(_tenant, _source);
        IF _turns > _from.turns THEN
            PERFORM too_few_turns(_source, _from.turns, _turns);
        END IF;
        IF _turns = _from.turns AND _from.running IS NOT NULL THEN
            PERFORM conflict(_from, 'running');
        END IF;
    END IF;
    IF EXISTS (SELECT FROM sessions WHERE id = _id) THEN
        PERFORM refuse('YS003', json_build_object('session', _id));
    END IF;
    SELECT coalesce(sum(sessions), 0)::bigint INTO _kept FROM usage WHERE tenant = _tenant;
    IF _kept >= _most THEN
        PERFORM refuse('YS007', json_build_object('what', 'sessions', 'kept', _kept, 'most', _most));
    END IF;
    INSERT INTO sessions
        VALUES (_id, _tenant, 1, coalesce(_turns, 0), NULL, _created_ms, _settings, _key, _source, _turns);
    IF _turns > 0 THEN
        INSERT INTO session_turns (session, place, turn)
            SELECT _id, place, turn FROM session_turns WHERE session = _source AND place < _turns;
        -- In one order for a session's turns, so that two steps seldom wait for each other; those that do are tried again.
        PERFORM FROM turns t JOIN session_turns s ON s.turn = t.id
            WHERE s.session = _id ORDER BY t.id FOR UPDATE OF t;
        UPDATE turns t SET shared = shared + 1 FROM session_turns s WHERE s.session = _id AND s.turn = t.id;
    END IF;
    PERFORM count_usage(_tenant, 1, 0);
    RETURN QUERY SELECT * FROM sessions WHERE id = _id;
END $$;

-- Forgets all but the first turns of a session that is held; how many bytes are kept no longer.
CREATE FUNCTION keep_first(_session uuid, _turns bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _gone uuid[];
    _bytes bigint;
BEGIN
    WITH gone AS (DELETE FROM session_turns WHERE session = _session AND place >= _turns RETURNING turn)
        SELECT array_agg(turn) INTO _gone FROM gone;
    PERFORM FROM turns WHERE id = ANY (_gone) ORDER BY id FOR UPDATE;
    WITH gone AS (
        DELETE FROM turns WHERE id = ANY (_gone) AND shared = 1
        RETURNING octet_length(accepted) + coalesce(octet_length(answer), 0) AS bytes
    )
        SELECT coalesce(sum(bytes), 0)::bigint INTO _bytes FROM gone;
    UPDATE turns SET shared = shared - 1 WHERE id = ANY (_gone);
    RETURN _bytes;
END $$;

CREATE FUNCTION truncate_session(_tenant text, _id uuid, _version bigint, _turns bigint, _now_ms bigint)
RETURNS SETOF sessions LANGUAGE plpgsql AS $$
DECLARE
    _session sessions := hold_idle(_tenant, _id, _version);
    _bytes bigint;
BEGIN
    IF _turns > _session.turns THEN
        PERFORM too_few_turns(_id, _session.turns, _turns);
    END IF;
    RETURN QUERY UPDATE sessions SET version = version + 1, turns = _turns, updated_ms = _now_ms
        WHERE id = _id RETURNING *;
    _bytes := keep_first(_id, _turns);
    PERFORM count_usage(_tenant, 0, -_bytes);
END $$;

CREATE FUNCTION delete_session(_tenant text, _id uuid, _version bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    _bytes bigint;
BEGIN
    PERFORM hold_idle(_tenant, _id, _version);
    _bytes := keep_first(_id, 0);
    DELETE FROM sessions WHERE id = _id;
    PERFORM count_usage(_tenant, -1, -_bytes);
END $$;

-- Forgets what a write left that came after the end of its turn.
CREATE FUNCTION sweep() RETURNS void LANGUAGE sql AS $$
    DELETE FROM tokens t WHERE NOT EXISTS (SELECT FROM running r WHERE r.turn = t.turn)
$$;

-- Forgets sessions that were last changed before; how many.
CREATE FUNCTION expire(_before_ms bigint, _most bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _session sessions;
    _count bigint := 0;
BEGIN
    FOR _session IN
        SELECT * FROM sessions WHERE running IS NULL AND updated_ms < _before_ms
        ORDER BY updated_ms, id LIMIT _most FOR UPDATE
    LOOP
        PERFORM count_usage(_session.tenant, -1, -keep_first(_session.id, 0));
        DELETE FROM sessions WHERE id = _session.id;
        _count := _count + 1;
    END LOOP;
    RETURN _count;
END $$;
