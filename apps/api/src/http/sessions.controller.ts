import { createSession, deleteSession, getSession, type Session } from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { type Call, Route } from './route.decorator.js'
import { SessionsService } from './sessions.service.js'

@Controller()
export class SessionsController {
  constructor(private readonly sessions: SessionsService) {}

  @Route(createSession)
  async create({ asking, body, header }: Call<typeof createSession>): Promise<Session> {
    const { session, setCookie } = await this.sessions.begin(asking, body.apiKey)
    header('set-cookie', setCookie)
    return session
  }

  @Route(getSession)
  get({ principal }: Call<typeof getSession>): Promise<Session> {
    return this.sessions.describe(principal)
  }

  @Route(deleteSession)
  async delete({ asking, header }: Call<typeof deleteSession>): Promise<undefined> {
    header('set-cookie', await this.sessions.end(asking))
  }
}
